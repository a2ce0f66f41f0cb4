package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// What the device signs, so that a signature made for one thing proves no other.
const (
	renewDomain   = "handrail-login-v1\n"
	approveDomain = "handrail-approve-v1\n"
	requestDomain = "handrail-request-v1\n"
)

func (t *tool) loginCommands() []*cobra.Command {
	return []*cobra.Command{t.loginCommand(), t.logoutCommand(), t.statusCommand(), t.whoamiCommand()}
}

func (t *tool) loginCommand() *cobra.Command {
	var tokenFile, dataDir string
	var local bool
	var o atProvider
	c := t.command("login", "Log in on this device for eight hours",
		"handrail login                        # renew, or ask for the token you were given\nhandrail login --provider             # at your company's provider, in the browser\nhandrail login --token-file token.txt  # the token from a file; - is stdin",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			if local && tokenFile != "" {
				return fault.New(fault.Invalid, "cannot log in: --local and --token-file exclude each other").WithHint("handrail login --local --data DIR")
			}
			if dataDir != "" && !local {
				return fault.New(fault.Invalid, "cannot log in: --data goes with --local").WithHint("handrail login --local --data %s", quoteShell(dataDir))
			}
			if o.asked() && (local || tokenFile != "") {
				return fault.New(fault.Invalid, "cannot log in: a token and a provider exclude each other").WithHint("handrail login --provider")
			}
			if err := o.check(); err != nil {
				return err
			}
			return t.logIn(cmd.Context(), tokenFile, local, dataDir, o)
		})
	c.Long = `Log in on this device for eight hours.

The first time, handrail asks for the login token that you were given; it is
never an argument, since others on this machine can list those. A key is made
on this device and never leaves it. Later, "handrail login" renews with that
key and asks for nothing. --local logs in the first person, on the server's own
machine, and works for the owner of its data folder only.

Where the installation has a provider (OIDC), --provider logs in there, in the
browser on this machine; --paste with a browser on another one; --device by a
code, where the installation allows it. The first time, --server and --root-key
name the server. Such a login asks the provider again each time.`
	o.flags(c)
	c.Flags().StringVar(&tokenFile, "token-file", "", "read the login token from this file (- is stdin)")
	c.Flags().BoolVar(&local, "local", false, "log in as the first person, on the server's machine")
	c.Flags().StringVar(&dataDir, "data", "", "the server's data folder, for --local")
	_ = c.RegisterFlagCompletionFunc("data", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
	return c
}

func (t *tool) logIn(ctx context.Context, tokenFile string, local bool, dataDir string, o atProvider) error {
	f, err := t.folder()
	if err != nil {
		return err
	}
	if err := f.make(); err != nil {
		return err
	}
	if l, err := f.login(); tokenFile == "" && !local && err == nil && l.Provider {
		if !o.asked() {
			o.on, o.user = l.User == "", l.User // it goes on as it began
		}
	}
	if o.asked() {
		return t.logInAtProvider(ctx, f, o)
	}
	if tokenFile == "" && !local {
		_, piped := terminal(t.Stdin)
		if renewed, err := t.renew(ctx, f); renewed || (err != nil && !piped) {
			return err
		} else if err != nil {
			t.say("%s", cleanText(understand(err).Text))
		}
	}
	word, err := t.token(ctx, tokenFile, local, dataDir)
	if err != nil {
		return err
	}
	tok, err := ledger.ParseToken(strings.TrimSpace(word))
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "cannot log in: this is no login token").WithHint("ask for one: handrail login-link PERSON")
	}
	return t.redeem(ctx, f, strings.TrimSpace(word), tok)
}

// token finds the login token: the server on this machine, a file, stdin, or
// the person at the terminal.
func (t *tool) token(ctx context.Context, file string, local bool, dataDir string) (string, error) {
	switch {
	case local && t.LocalToken == nil:
		return "", fault.New(fault.Invalid, "cannot log in locally: this program holds no server").WithHint("handrail login --token-file FILE")
	case local:
		if dataDir != "" {
			abs, err := filepath.Abs(dataDir)
			if err != nil {
				return "", fault.Wrap(fault.Invalid, err, "cannot find the data folder")
			}
			dataDir = abs
		}
		return t.LocalToken(ctx, dataDir)
	case file != "" && file != "-":
		raw, err := readBounded(file)
		if err != nil {
			return "", fault.Wrap(fault.Invalid, err, "cannot read the login token").WithHint("handrail login --token-file FILE")
		}
		return string(raw), nil
	}
	if fd, tty := terminal(t.Stdin); tty && file == "" {
		word, err := t.askSecret(ctx, fd, "Login token (from handrail login-link; not shown): ")
		if err != nil {
			return "", err
		}
		if word == "" {
			return "", fault.New(fault.Invalid, "cannot log in: no token was given").WithHint("handrail login --token-file FILE")
		}
		return word, nil
	}
	raw, err := io.ReadAll(io.LimitReader(t.Stdin, maxToken))
	if err != nil || len(strings.TrimSpace(string(raw))) == 0 {
		return "", fault.New(fault.Invalid, "cannot log in: there is no terminal to ask at and stdin is empty").WithHint("handrail login --token-file FILE")
	}
	return string(raw), nil
}

const maxToken = 64 << 10

func readBounded(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, maxToken))
}

// redeem exchanges the token for a login, and pins the root key it names.
func (t *tool) redeem(ctx context.Context, f folder, word string, tok ledger.Token) error {
	l := login{Address: address(tok.Address), RootHash: tok.RootHash}
	tr, err := t.pin(ctx, f, l)
	if err != nil {
		return err
	}
	key, err := f.device(true)
	if err != nil {
		return err
	}
	answer, err := newClient(f, l, tr).logins.Redeem(ctx, &v1.RedeemRequest{
		Token: word, DeviceKey: key.PublicKey().Marshal(), DeviceName: t.deviceName(),
	})
	if err != nil {
		return err
	}
	return t.keep(f, tr, l, answer)
}

// pin fetches the trust bundle of an installation, checked against the root key
// that the login names.
func (t *tool) pin(ctx context.Context, f folder, l login) (*trust, error) {
	tr := &trust{folder: f, address: l.Address, rootHash: l.RootHash}
	old, err := f.login()
	known := err == nil
	if known && old.RootHash != l.RootHash {
		// Another installation: its bundle must not be compared with the old one.
		if old.Token != "" && t.Now().Before(old.Expires) {
			return nil, fault.New(fault.Conflict, "cannot log in to %s: this folder is logged in to another installation at %s", tr.address, old.Address).
				WithHint("handrail logout --forget, or use another HANDRAIL_HOME")
		}
		if err := f.forget(true); err != nil {
			return nil, err
		}
		if err := f.make(); err != nil {
			return nil, err
		}
	} else if known {
		if err := tr.stored(); err != nil {
			return nil, err
		}
	}
	return tr, tr.fetch(ctx)
}

func (t *tool) deviceName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unnamed device"
	}
	if user := t.Env("USER"); user != "" {
		return user + "@" + host
	}
	return host
}

// renew logs in again with the key of this device. It is false without an
// error when this device was never enrolled.
func (t *tool) renew(ctx context.Context, f folder) (bool, error) {
	l, err := f.login()
	if err != nil {
		return false, nil
	}
	key, err := f.device(false)
	if err != nil || l.Device == "" {
		return false, nil
	}
	l.Token = ""
	c, err := connectTo(f, l)
	if err != nil {
		return false, err
	}
	if err := c.trust.fetch(ctx); err != nil {
		return false, err
	}
	public := key.PublicKey().Marshal()
	begin, err := c.logins.RenewBegin(ctx, &v1.RenewBeginRequest{DeviceKey: public})
	if err != nil {
		return false, err
	}
	signature, err := sign(key, renewDomain, begin.Nonce)
	if err != nil {
		return false, err
	}
	answer, err := c.logins.Renew(ctx, &v1.RenewRequest{DeviceKey: public, Nonce: begin.Nonce, Signature: signature})
	if err != nil {
		return false, err
	}
	return true, t.keep(f, c.trust, l, answer)
}

// sign makes an SSH signature over a domain and a message.
func sign(key ssh.Signer, domain string, message []byte) ([]byte, error) {
	s, err := key.Sign(nil, append([]byte(domain), message...)) // ed25519 takes no randomness
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "cannot sign with the device key")
	}
	return ssh.Marshal(s), nil
}

// keep saves a login. The login itself comes last: a crash before it leaves a
// folder that says "not logged in".
func (t *tool) keep(f folder, tr *trust, l login, answer *v1.RedeemResponse) error {
	if len(answer.Bundle) > 0 {
		if err := tr.accept(answer.Bundle); err != nil {
			return err
		}
	}
	l.Token, l.Expires = answer.LoginToken, answer.Expires.AsTime()
	l.Person, l.PersonName = answer.Person.GetId(), answer.Person.GetName()
	l.SSHAddress = orElse(answer.SshAddress, l.SSHAddress)
	l.Device = orElse(answer.Device, l.Device)
	if err := f.writeSSH(l, tr.current(), answer.SshCertificate); err != nil {
		return err
	}
	if err := f.saveLogin(l); err != nil {
		return err
	}
	shown := &sheet{id: l.PersonName}
	shown.put("person", l.PersonName).put("groups", strings.Join(answer.Person.GetGroups(), ", ")).
		put("server", l.Address).put("ends", t.full(answer.Expires)).wide("root key", l.RootHash)
	// The answer holds the token: what is printed says who, never how.
	told := &v1.WhoamiResponse{Person: answer.Person, Expires: answer.Expires, Via: "device"}
	if err := t.emit(told, shown); err != nil {
		return err
	}
	if l.SSHAddress != "" && !t.included(f) {
		t.say("For plain ssh, scp, sftp and rsync, put this line first in ~/.ssh/config:\n\n  Include %s\n\nthen: ssh HOST@handrail", configQuote(f.path(fileSSH)))
	}
	return nil
}

func configQuote(path string) string {
	if strings.ContainsAny(path, " \t") {
		return `"` + path + `"`
	}
	return path
}

// included says whether ~/.ssh/config has the Include line already.
func (t *tool) included(f folder) bool {
	raw, err := readBounded(filepath.Join(t.Env("HOME"), ".ssh", "config"))
	return err == nil && strings.Contains(string(raw), "Include "+configQuote(f.path(fileSSH)))
}

func (t *tool) logoutCommand() *cobra.Command {
	var forget bool
	c := t.command("logout", "End the login on this device",
		"handrail logout           # the device stays enrolled: handrail login renews\nhandrail logout --forget  # and remove key, trust and ssh files from this device",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			f, err := t.folder()
			if err != nil {
				return err
			}
			l, err := f.login()
			if err == nil && l.Token != "" {
				// Ending the login at the server is good manners; ending it here
				// must work even when the server is away.
				if c, err := connectTo(f, l); err != nil {
					t.say("The server was not told: %s", cleanText(understand(err).Text))
				} else if _, err := c.logins.Logout(cmd.Context(), &v1.LogoutRequest{}); err != nil && understand(err).Kind != fault.Unauthenticated {
					t.say("The server was not told: %s", cleanText(understand(err).Text))
				}
				l.Token = ""
				if err := f.saveLogin(l); err != nil {
					return err
				}
			} else if err != nil && !forget {
				return err
			}
			return f.forget(forget)
		})
	c.Flags().BoolVar(&forget, "forget", false, "remove everything that login left on this device")
	return c
}
