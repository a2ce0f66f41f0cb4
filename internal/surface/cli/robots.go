package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (t *tool) robotCommands() []*cobra.Command {
	return []*cobra.Command{t.group("robot", "Programs that act: make, look at, change, end",
		"handrail robot list                          # who answers for them, and until when\nhandrail robot show deployer                 # what it may do, and how it proves itself",
		t.robotListCommand(), t.robotShowCommand(), t.robotAddCommand(), t.robotRotateCommand(), t.robotRemoveCommand(), t.robotLoginCommand())}
}

func (t *tool) robotListCommand() *cobra.Command {
	return t.command("list", "List the robots",
		"handrail robot list          # owners, hosts, ends\nhandrail robot list -o wide  # and what they may do",
		exactly(),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.robots.List(cmd.Context(), &v1.ListRobotsRequest{})
			if err != nil {
				return err
			}
			tb := &table{head: []string{"ROBOT", "OWNER", "HOSTS", "STATE", "MAY", "ID"}, wide: 4, empty: "No robot yet. Make one: handrail robot add NAME --help"}
			for _, r := range answer.Robots {
				row := cells(r.Person.GetName(), r.OwnerName, r.Hosts, "", strings.Join(r.May, ","), r.Person.GetId())
				row[3] = t.robotState(r)
				tb.add(r.Person.GetName(), row)
			}
			return t.emit(answer, tb)
		})
}

func (t *tool) robotState(r *v1.Robot) cell {
	switch {
	case r.Person.GetLocked() != nil:
		return cell{"locked", bad}
	case !t.Now().Before(r.Expires.AsTime()):
		return cell{"expired", warn}
	}
	return cell{"until " + r.Expires.AsTime().UTC().Format(time.DateOnly), good}
}

func (t *tool) robotView(r *v1.Robot) *sheet {
	s := &sheet{id: r.Person.GetName()}
	state := t.robotState(r)
	s.put("robot", r.Person.GetName()).put("id", r.Person.GetId()).put("owner", r.OwnerName).toned("state", state.value, state.tone)
	if r.Person.GetLocked() != nil {
		s.toned("locked", t.full(r.Person.Locked)+": "+orElse(r.Person.LockedReason, "no reason given"), bad)
	}
	s.put("may", strings.Join(r.May, ", ")).put("hosts", r.Hosts).put("until", t.full(r.Expires))
	if p := r.Proof; p.GetKey() != "" {
		s.put("key", "SHA-256 "+p.Key)
	} else {
		s.put("issuer", p.GetIssuer()).put("audience", p.GetAudience()).put("subject", p.GetSubject())
		for _, name := range sortedNames(p.GetClaims()) {
			s.put("claim", name+" = "+p.Claims[name])
		}
	}
	return s
}

func sortedNames(m map[string]string) (names []string) {
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (t *tool) robotShowCommand() *cobra.Command {
	return t.command("show ROBOT", "Show one robot",
		"handrail robot show deployer          # by name or id\nhandrail robot show deployer -o json  # for a script",
		exactly("the robot"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.robots.Get(cmd.Context(), &v1.GetRobotRequest{Robot: args[0]})
			if err != nil {
				return err
			}
			return t.emit(answer, t.robotView(answer.Robot))
		})
}

// robotFlags is what a robot is given, at first or anew.
type robotFlags struct {
	may                                []string
	hosts, last                        string
	issuer, audience, subject, keyFile string
	claims                             []string
}

func (o *robotFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&o.may, "may", nil, "an action: sessions.open:read, hosts.list, inspect, … (repeatable)")
	f.StringVar(&o.hosts, "on", "", "the hosts, by a selector: env:dev")
	f.StringVar(&o.last, "for", "", "how long, at most a year: 90d")
	f.StringVar(&o.issuer, "issuer", "", "who vouches for its workload (OIDC)")
	f.StringVar(&o.audience, "audience", "", "whom the workload's token is for, exactly")
	f.StringVar(&o.subject, "subject", "", "which workload it is, exactly")
	f.StringArrayVar(&o.claims, "claim", nil, "a further claim of its token, NAME=VALUE (repeatable)")
	f.StringVar(&o.keyFile, "key", "", "its certificate or public key instead (PEM)")
}

func (o *robotFlags) expires(now time.Time) (*timestamppb.Timestamp, error) {
	if o.last == "" {
		return nil, nil
	}
	d, err := robotTime(o.last)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read --for %q", o.last).WithHint("--for 90d")
	}
	return timestamppb.New(now.Add(d).Truncate(time.Minute)), nil
}

// robotTime reads a time in days too.
func robotTime(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if _, err := fmt.Sscanf(days+" ", "%d ", &n); err != nil || fmt.Sprint(n) != days || n > 366 {
			return 0, fmt.Errorf("it is no number of days up to 366")
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(text)
}

func (o *robotFlags) proof() (*v1.RobotProof, error) {
	if o.issuer == "" && o.audience == "" && o.subject == "" && o.keyFile == "" && len(o.claims) == 0 {
		return nil, nil
	}
	p := &v1.RobotProof{Issuer: o.issuer, Audience: o.audience, Subject: o.subject}
	for _, c := range o.claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok {
			return nil, fault.New(fault.Invalid, "cannot read --claim %q: it is no NAME=VALUE", c).WithHint("--claim environment=production")
		}
		if p.Claims == nil {
			p.Claims = map[string]string{}
		}
		p.Claims[name] = value
	}
	if o.keyFile != "" {
		raw, err := readBounded(o.keyFile)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "cannot read the robot's key")
		}
		if p.Key, err = keyHash(raw); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// keyHash names the public key in a certificate or public key file. A private
// key has no business here.
func keyHash(raw []byte) (string, error) {
	wrong := fault.New(fault.Invalid, "cannot read the robot's key: it is no certificate or public key in PEM").WithHint("openssl pkey -in robot.key -pubout -out robot.pub")
	block, _ := pem.Decode(raw)
	if block == nil {
		return "", wrong
	}
	spki := block.Bytes
	switch block.Type {
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", wrong
		}
		spki = cert.RawSubjectPublicKeyInfo
	case "PUBLIC KEY":
		if _, err := x509.ParsePKIXPublicKey(spki); err != nil {
			return "", wrong
		}
	default:
		return "", wrong
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), nil
}

func (t *tool) robotAddCommand() *cobra.Command {
	var o robotFlags
	var owner string
	c := t.command("add NAME", "Make a robot; a second person agrees",
		"handrail robot add nightly --may sessions.open:read --on env:dev --issuer https://ci.example.com --audience handrail --subject infra:main  # by its workload\nhandrail robot add backup --owner ada --may inspect --on service:db --for 30d --key backup.crt  # by a key of its own",
		exactly("the name"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if o.last == "" {
				o.last = "90d"
			}
			until, err := o.expires(t.Now())
			if err != nil {
				return err
			}
			proof, err := o.proof()
			if err != nil {
				return err
			}
			if owner == "" {
				owner = c.login.Person
			}
			answer, err := c.robots.Add(cmd.Context(), &v1.AddRobotRequest{Name: args[0], Owner: owner, May: o.may, Hosts: o.hosts, Expires: until, Proof: proof})
			if err != nil {
				return err
			}
			s := &sheet{id: args[0]}
			s.put("robot", args[0]).put("until", t.full(until)).put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "robot "+clean(args[0]))
		})
	o.add(c)
	c.Flags().StringVar(&owner, "owner", "", "the person who answers for it (default: you)")
	return c
}

func (t *tool) robotRotateCommand() *cobra.Command {
	var o robotFlags
	c := t.command("rotate NAME", "Give a robot another key, or change what is given; a second person agrees",
		"handrail robot rotate backup --key new.crt     # the old key is worth nothing from then on\nhandrail robot rotate nightly --for 90d        # it goes on for so long",
		exactly("the robot"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			until, err := o.expires(t.Now())
			if err != nil {
				return err
			}
			proof, err := o.proof()
			if err != nil {
				return err
			}
			if proof == nil && until == nil && len(o.may) == 0 && o.hosts == "" {
				return fault.New(fault.Invalid, "cannot change robot %s: nothing is to be changed", args[0]).WithHint("handrail robot rotate %s --key FILE", args[0])
			}
			answer, err := c.robots.Set(cmd.Context(), &v1.SetRobotRequest{Robot: args[0], May: o.may, Hosts: o.hosts, Expires: until, Proof: proof})
			if err != nil {
				return err
			}
			s := &sheet{id: args[0]}
			s.put("robot", args[0]).put("approval", answer.Approval)
			return t.awaiting(answer, s, answer.Approval, "the change of robot "+clean(args[0]))
		})
	o.add(c)
	return c
}

func (t *tool) robotRemoveCommand() *cobra.Command {
	var reason string
	c := t.command("remove NAME", "End a robot for good, at once",
		"handrail robot remove nightly                              # its sessions end, too\nhandrail robot remove nightly --reason \"its key was leaked\"  # and the ledger says why",
		exactly("the robot"),
		func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			answer, err := c.robots.Remove(cmd.Context(), &v1.RemoveRobotRequest{Robot: args[0], Reason: reason})
			if err != nil {
				return err
			}
			s := &sheet{id: args[0]}
			return t.emit(answer, s.put("removed", args[0]))
		})
	c.Flags().StringVar(&reason, "reason", "", "why")
	return c
}

func (t *tool) robotLoginCommand() *cobra.Command {
	var o atProvider
	var tokenFile, certFile, keyFile string
	c := t.command("login NAME", "Be a robot for an hour",
		"handrail robot login nightly --token-file token --server HOST:PORT --root-key HASH  # its workload's token; - is stdin\nhandrail robot login backup --cert backup.crt --key backup.key                      # its own key, where the server is known",
		exactly("the robot"),
		func(cmd *cobra.Command, args []string) error {
			if (tokenFile == "") == (certFile == "" && keyFile == "") || (certFile == "") != (keyFile == "") {
				return fault.New(fault.Invalid, "cannot log in a robot: give its token, or its certificate and key").WithHint("handrail robot login --help")
			}
			if err := o.check(); err != nil {
				return err
			}
			return t.robotLogin(cmd.Context(), args[0], o, tokenFile, certFile, keyFile)
		})
	f := c.Flags()
	f.StringVar(&tokenFile, "token-file", "", "the token of its workload (- is stdin)")
	f.StringVar(&certFile, "cert", "", "its certificate (PEM); its key alone counts")
	f.StringVar(&keyFile, "key", "", "the key of --cert (PEM)")
	f.StringVar(&o.server, "server", "", "host:port of the server, the first time")
	f.StringVar(&o.root, "root-key", "", "hash of its root key, the first time")
	return c
}

func (t *tool) robotLogin(ctx context.Context, name string, o atProvider, tokenFile, certFile, keyFile string) error {
	f, err := t.folder()
	if err != nil {
		return err
	}
	if err := f.make(); err != nil {
		return err
	}
	l := login{Address: address(o.server), RootHash: o.root}
	if o.server == "" {
		old, err := f.login()
		if err != nil {
			return fault.New(fault.Unauthenticated, "cannot log in: this device knows no server yet").WithHint("handrail robot login %s --server HOST:PORT --root-key HASH", name)
		}
		l = login{Address: old.Address, RootHash: old.RootHash}
	}
	tr, err := t.pin(ctx, f, l)
	if err != nil {
		return err
	}
	l.Robot = true
	var answer *v1.RedeemResponse
	if tokenFile != "" {
		var token []byte
		if tokenFile == "-" {
			token, err = io.ReadAll(io.LimitReader(t.Stdin, maxToken))
		} else {
			token, err = readBounded(tokenFile)
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot read the token")
		}
		answer, err = newClient(f, l, tr).robots.Exchange(ctx, &v1.ExchangeRequest{
			Robot: name, SubjectToken: strings.TrimSpace(string(token)), SubjectTokenType: "urn:ietf:params:oauth:token-type:jwt",
		})
	} else {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot use the robot's certificate")
		}
		conf := tr.config()
		conf.ServerName, conf.Certificates = robotName, []tls.Certificate{pair}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DialContext: dialer().DialContext}}
		defer h.CloseIdleConnections()
		answer, err = handrailv1connect.NewRobotsClient(h, "https://"+l.Address, connect.WithInterceptors(patience())).Enter(ctx, &v1.EnterRequest{Robot: name})
	}
	if err != nil {
		return err
	}
	return t.keep(f, tr, l, answer)
}

// robotName is what a robot with a key calls the server by.
const robotName = "robot.handrail.internal"
