package app

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"handrail.dev/handrail/internal/host/entrance"
)

func TestAnyTwoOfThreeOfficersMakeAVoucherThatHostsTakeAndOneDoesNot(t *testing.T) {
	dir := t.TempDir()
	id := func(name string) (string, string) {
		k, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name+".txt")
		if err := os.WriteFile(path, []byte(k.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path, k.Recipient().String()
	}
	adaFile, ada := id("ada")
	benFile, ben := id("ben")
	words := func(string, bool) (string, error) { return "correct horse battery", nil }
	line, err := splitAuthority([]string{"ada=" + ada, "ben=" + ben, "cy="}, dir, words)
	if err != nil {
		t.Fatal(err)
	}
	_, priv, _ := ed25519.GenerateKey(rand.Reader)
	pub, _ := ssh.NewPublicKey(priv.Public())
	key := filepath.Join(dir, "id.pub")
	if err := os.WriteFile(key, ssh.MarshalAuthorizedKey(pub), 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	make := func(shares []string, identities ...string) (entrance.Voucher, error) {
		r := rite{identities: identities, key: key, person: "dora", reason: "all is gone", everywhere: true, account: "root", life: time.Hour, out: filepath.Join(dir, "out")}
		for _, s := range shares {
			r.shares = append(r.shares, filepath.Join(dir, "share-"+s+".age"))
		}
		if err := r.run(now, words); err != nil {
			return entrance.Voucher{}, err
		}
		raw, err := os.ReadFile(r.out)
		if err != nil {
			t.Fatal(err)
		}
		cert, _, _, _, err := ssh.ParseAuthorizedKey(raw)
		if err != nil {
			t.Fatal(err)
		}
		return entrance.Check(cert.Marshal(), entrance.Authorities{Offline: []string{line}}, now)
	}
	for _, pair := range [][]string{{"ada", "ben"}, {"ben", "ada"}, {"ada", "cy"}, {"cy", "ben"}} {
		v, err := make(pair, adaFile, benFile)
		if err != nil || !v.Offline || strings.Join(v.Officers, " ") != strings.Join(pair, " ") || v.Reason != "all is gone" {
			t.Errorf("%v: %v, %+v", pair, err, v)
		}
	}
	if _, err := make([]string{"ada", "ada"}, adaFile); err == nil {
		t.Error("one share twice makes a voucher")
	}
	if _, err := make([]string{"ada", "ben"}, adaFile); err == nil {
		t.Error("a share opens without its officer")
	}
	if _, err := splitAuthority([]string{"ada=" + ada, "ben=" + ben, "cy="}, t.TempDir(), words); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if _, err := splitAuthority([]string{"ada=" + ada, "ben=" + ben, "cy="}, other, words); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(other, "share-ben.age"), filepath.Join(dir, "share-ben.age")); err != nil {
		t.Fatal(err)
	}
	if _, err := make([]string{"ada", "ben"}, adaFile, benFile); err == nil || !strings.Contains(err.Error(), "two authorities") {
		t.Errorf("shares of two splits: %v", err)
	}
}
