package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

// The files of a voucher in the client folder: what stock ssh needs when no
// server answers.
const (
	fileVoucher      = "voucher.json"
	fileVoucherCert  = "voucher-cert.pub"
	fileVoucherSSH   = "voucher_ssh_config"
	fileVoucherHosts = "voucher_known_hosts"
)

// voucherFor is how old a voucher may be before any command renews it.
const voucherFor = 12 * time.Hour

// voucherRest is how long a renewal that failed is not tried again.
const voucherRest = time.Hour

// voucher is what the folder remembers of one.
type voucher struct {
	Serial  uint64         `json:"serial"`
	Key     string         `json:"key"` // hardware, file
	KeyFile string         `json:"key_file"`
	Asked   []string       `json:"asked,omitempty"` // hosts, as they were named
	Fetched time.Time      `json:"fetched"`
	Tried   time.Time      `json:"tried,omitzero"` // to renew it, in vain
	Expires time.Time      `json:"expires"`
	Hosts   []voucherPlace `json:"hosts"`
	LeftOut []string       `json:"left_out,omitempty"`
}

type voucherPlace struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Account string `json:"account"`
	Address string `json:"address"`
	Port    uint32 `json:"port"`
}

func (t *tool) voucherCommand(ceremony []*cobra.Command) *cobra.Command {
	var keyFile string
	fetch := t.command("fetch [HOST…]", "Fetch a voucher: the way in, recorded, while no server answers",
		"handrail voucher fetch                       # for every host on which you may break the glass\nhandrail voucher fetch web-1 --key ~/.ssh/id_ed25519_sk.pub    # for one host, on that key",
		cobra.ArbitraryArgs, func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			v, err := t.fetchVoucher(cmd.Context(), c, keyFile, args)
			if err != nil {
				return err
			}
			return t.showVoucher(c.folder, v)
		})
	fetch.Long = `A voucher is an SSH certificate for a day on a key of yours. It opens the
entrance of a host only when that host has had no word of a server for two
minutes, for one recorded session of an hour at most; everybody on the host is
told, and a review is owed. While a server answers it is worth nothing.

Any handrail command renews it once it is twelve hours old. The key is a FIDO
key where you have one (ssh-keygen -t ed25519-sk -O verify-required), else this
device's key file, which a host may refuse.`
	fetch.Flags().StringVar(&keyFile, "key", "", "public key to certify (default: ~/.ssh/id_*_sk.pub, else this device's key)")
	fetch.ValidArgsFunction = t.completeHosts
	show := t.command("show", "Say what the voucher on this device opens, and the exact commands",
		"handrail voucher show            # works without a server\nhandrail voucher show -o json    # for a program",
		exactly(), func(*cobra.Command, []string) error {
			f, err := t.folder()
			if err != nil {
				return err
			}
			v, err := f.voucher()
			if err != nil {
				return err
			}
			return t.showVoucher(f, v)
		})
	list := t.command("list", "List the vouchers that are out",
		"handrail voucher list            # everybody's\nhandrail voucher list -o json    # for a program",
		exactly(), func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			r, err := c.vouchers.List(cmd.Context(), &v1.ListVouchersRequest{})
			if err != nil {
				return err
			}
			return t.printVouchers(r)
		})
	g := t.group("voucher", "Get in, recorded, while handrail itself is down", "handrail voucher fetch    # daily, while all is well\nhandrail voucher show     # when it is not: the commands to type", fetch, show, list, t.voucherKeyCommand(), t.voucherRevokeCommand())
	g.AddCommand(ceremony...)
	return g
}

func (t *tool) printVouchers(r *v1.ListVouchersResponse) error {
	tab := &table{head: []string{"SERIAL", "WHO", "KEY", "HOSTS", "EXPIRES"}, empty: "no voucher is out; next: handrail voucher fetch"}
	for _, v := range r.Vouchers {
		serial := strconv.FormatUint(v.Serial, 10)
		tab.add(serial, cells(serial, v.PersonName, v.Key, strconv.Itoa(int(v.Hosts)), t.at(v.Expires)))
	}
	return t.emit(r, tab)
}

// voucher reads what this device has.
func (f folder) voucher() (voucher, error) {
	var v voucher
	raw, err := os.ReadFile(f.path(fileVoucher))
	if errors.Is(err, fs.ErrNotExist) {
		return v, fault.New(fault.NotFound, "cannot find a voucher: this device has none").WithHint("handrail voucher fetch (while the server answers)")
	}
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	if err != nil {
		return v, fault.Wrap(fault.Invalid, err, "cannot read the voucher in %s", f.dir).WithHint("handrail voucher fetch")
	}
	return v, nil
}

// voucherKey finds the key to certify: the one named, a FIDO key, else this
// device's.
func (t *tool) voucherKey(f folder, named string) (line, private string, err error) {
	tries := []string{named}
	if named == "" {
		home := t.Env("HOME")
		tries = []string{filepath.Join(home, ".ssh", "id_ed25519_sk.pub"), filepath.Join(home, ".ssh", "id_ecdsa_sk.pub"), f.path(fileKey + ".pub")}
	}
	for _, path := range tries {
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && named == "" {
			continue
		}
		if err != nil {
			return "", "", fault.Wrap(fault.Invalid, err, "cannot read the key")
		}
		if _, _, _, _, err := ssh.ParseAuthorizedKey(raw); err != nil {
			return "", "", fault.Wrap(fault.Invalid, err, "cannot read %s: it is no public key", path).WithHint("name the file that ends in .pub")
		}
		return string(raw), strings.TrimSuffix(path, ".pub"), nil
	}
	return "", "", fault.New(fault.NotFound, "cannot find a key to certify").WithHint("ssh-keygen -t ed25519-sk -O verify-required, or handrail login")
}

// fetchVoucher fetches one and writes the files that stock ssh needs.
func (t *tool) fetchVoucher(ctx context.Context, c *client, keyFile string, hosts []string) (voucher, error) {
	line, private, err := t.voucherKey(c.folder, keyFile)
	if err != nil {
		return voucher{}, err
	}
	r, err := c.vouchers.Fetch(ctx, &v1.FetchVoucherRequest{PublicKey: line, Hosts: hosts})
	if err != nil {
		return voucher{}, unreachable(c.login.Address, err)
	}
	v := voucher{Serial: r.Serial, Key: r.Key, KeyFile: private, Asked: hosts, Fetched: t.Now(), Expires: r.Expires.AsTime(), LeftOut: r.LeftOut}
	for _, h := range r.Hosts {
		p := voucherPlace{ID: h.Id, Name: h.Name, Account: h.Account, Address: h.Name, Port: h.Port}
		if len(h.Addresses) > 0 {
			p.Address = h.Addresses[0]
		}
		if !harmless(p.Name) || !harmless(p.Address) {
			return v, fault.New(fault.Internal, "cannot use the voucher: a host is called %q at %q", p.Name, p.Address)
		}
		v.Hosts = append(v.Hosts, p)
	}
	return v, c.folder.writeVoucher(v, r)
}

// harmless keeps what a server says out of the syntax of ssh's files.
func harmless(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_:%", r))
	})
}

func (f folder) writeVoucher(v voucher, r *v1.FetchVoucherResponse) error {
	if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(r.Certificate)); err != nil {
		return fault.Wrap(fault.Internal, err, "cannot read the voucher that the server made")
	}
	var known, config strings.Builder
	fmt.Fprintln(&config, "# Written by \"handrail voucher fetch\"; changes here are lost.\n# ssh -F THIS-FILE bg-HOST, once a host has had no word of a server for two minutes.")
	for i, h := range r.Hosts {
		pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(h.HostKey))
		if err != nil {
			return fault.Wrap(fault.Internal, err, "cannot read the key of the entrance of %s", clean(h.Name))
		}
		p := v.Hosts[i]
		fmt.Fprintf(&known, "bg-%s %s", p.Name, ssh.MarshalAuthorizedKey(pub))
		fmt.Fprintf(&config, `
Host bg-%s
  HostName %s
  Port %d
  User bg
  HostKeyAlias bg-%s
  UserKnownHostsFile %q
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  IdentityFile %q
  CertificateFile %q
  IdentitiesOnly yes
  ForwardAgent no
  ControlPath none
`, p.Name, p.Address, p.Port, p.Name, f.path(fileVoucherHosts), v.KeyFile, f.path(fileVoucherCert))
	}
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{
		{fileVoucherCert, []byte(strings.TrimSpace(r.Certificate) + "\n")}, {fileVoucherHosts, []byte(known.String())},
		{fileVoucherSSH, []byte(config.String())}, {fileVoucher, append(raw, '\n')},
	} {
		if err := f.write(file.name, file.data); err != nil {
			return err
		}
	}
	return nil
}

func (t *tool) showVoucher(f folder, v voucher) error {
	if t.format == "json" {
		e := json.NewEncoder(t.out())
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	left := v.Expires.Sub(t.Now())
	if left <= 0 {
		t.say("This voucher expired %s ago; fetch another while the server answers: handrail voucher fetch", length(-left))
	}
	fmt.Fprintf(t.out(), "voucher %d on a %s key, %d hosts, until %s\n", v.Serial, v.Key, len(v.Hosts), v.Expires.Local().Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(t.out(), "\nWhen no server has answered for two minutes:\n\n")
	for i, h := range v.Hosts {
		if i == 5 && t.format != "wide" {
			fmt.Fprintf(t.out(), "  … %d more: -o wide\n", len(v.Hosts)-i)
			break
		}
		fmt.Fprintf(t.out(), "  ssh -F %s bg-%s    # %s\n", quoteShell(f.path(fileVoucherSSH)), h.Name, h.Account)
	}
	if len(v.Hosts) > 0 {
		h := v.Hosts[0]
		fmt.Fprintf(t.out(), "\nor without that file:\n\n  ssh -i %s -o CertificateFile=%s -o UserKnownHostsFile=%s -o HostKeyAlias=bg-%s -p %d bg@%s\n",
			quoteShell(v.KeyFile), quoteShell(f.path(fileVoucherCert)), quoteShell(f.path(fileVoucherHosts)), h.Name, h.Port, h.Address)
	}
	if v.Key == "file" {
		t.say("\nThe key is a file: whoever copies it and the voucher can use both. A FIDO key wants a touch each time:\n  ssh-keygen -t ed25519-sk -O verify-required && handrail voucher fetch")
	}
	for _, why := range v.LeftOut {
		t.say("not in it: %s", clean(why))
	}
	return nil
}

// keepVoucher renews a voucher that this device has and that has grown old,
// after a command that worked. It never holds up or fails that command.
func (t *tool) keepVoucher(cmd *cobra.Command) {
	if p := cmd.Parent(); p != nil && (p.Name() == "voucher" || p.Name() == "drill") {
		return
	}
	f, err := t.folder()
	if err != nil {
		return
	}
	v, err := f.voucher()
	if err != nil || t.Now().Sub(v.Fetched) < voucherFor || t.Now().Sub(v.Tried) < voucherRest {
		return
	}
	c, err := t.client()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 3*time.Second)
	defer cancel()
	if _, err := t.fetchVoucher(ctx, c, v.KeyFile+".pub", v.Asked); err != nil {
		t.say("handrail: your voucher is %s old and could not be renewed: %s", length(t.Now().Sub(v.Fetched)), cleanText(understand(err).Text))
		v.Tried = t.Now()
		if raw, err := json.MarshalIndent(v, "", "  "); err == nil {
			_ = c.folder.write(fileVoucher, append(raw, '\n')) // else the next command tries
		}
	}
}
