package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func TestStockSSHReadsWhatAVoucherWrites(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("needs ssh")
	}
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	line := string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
	f := folder{t.TempDir() + "/with space"}
	v := voucher{KeyFile: f.path(fileKey), Hosts: []voucherPlace{{Name: "web-1", Address: "192.0.2.7", Port: 7322}, {Name: "web-2", Address: "2001:db8::1", Port: 7322}}}
	r := &v1.FetchVoucherResponse{Certificate: line, Hosts: []*v1.VoucherHost{{Name: "web-1", HostKey: line}, {Name: "web-2", HostKey: line}}}
	if err := f.writeVoucher(v, r); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ssh", "-G", "-F", f.path(fileVoucherSSH), "bg-web-2").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"hostname 2001:db8::1", "port 7322", "user bg", "stricthostkeychecking true", "identitiesonly yes", "hostkeyalias bg-web-2", f.path(fileVoucherCert)} {
		if !strings.Contains(string(out), want) {
			t.Errorf("ssh does not read %q:\n%s", want, out)
		}
	}
	if info, err := os.Stat(f.path(fileVoucherCert)); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others can read the voucher: %v", err)
	}
	got, err := f.voucher()
	if err != nil || len(got.Hosts) != 2 {
		t.Errorf("%+v %v", got, err)
	}
	known, err := exec.CommandContext(context.Background(), "ssh-keygen", "-F", "bg-web-1", "-f", f.path(fileVoucherHosts)).Output()
	if err != nil || !strings.Contains(string(known), "ssh-ed25519") {
		t.Errorf("%v: %s", err, known)
	}
}

func TestAServerWritesNothingIntoSSHsFiles(t *testing.T) {
	for word, ok := range map[string]bool{"web-1": true, "10.0.0.1": true, "fe80::1%eth0": true, "": false, "a b": false, "a\nProxyCommand x": false, `"`: false, "#": false, "*": false, "ü": false} {
		if harmless(word) != ok {
			t.Errorf("%q", word)
		}
	}
}

func TestTheTrendOfDrills(t *testing.T) {
	d := func(seconds ...int) (list []*v1.Drill) {
		for _, s := range seconds {
			list = append(list, &v1.Drill{Outcome: "ok", Took: durationpb.New(time.Duration(s) * time.Second)})
		}
		return append(list, &v1.Drill{Outcome: "failed", Took: durationpb.New(time.Hour)})
	}
	for want, drills := range map[string][]*v1.Drill{
		"":                              d(),
		"the last 2 took 3s on average": d(2, 4),
		"the last 5 took 1s on average, the 2 before them 5s": d(1, 1, 1, 1, 1, 4, 6),
	} {
		if got := trend(drills); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
