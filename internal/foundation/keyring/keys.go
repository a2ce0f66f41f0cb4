package keyring

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/note"

	"handrail.dev/handrail/internal/foundation/fault"
	"handrail.dev/handrail/internal/foundation/ledger"
)

// keys are the private halves of one trust bundle. They do not change.
//
// The bundle decides which of the files in the folder count: of each kind the
// one that it names as in force, and beside it one that it names as former for
// as long as a rotation is not finished (rotate.go). Until then the former one
// acts, which everybody knows, and the log is signed by both.
type keys struct {
	bundle  ledger.Bundle
	signed  []byte
	log     []note.Signer // the one in force first
	logs    ledger.LogKeys
	order   ed25519.PrivateKey
	ca      *ecdsa.PrivateKey
	caCert  *x509.Certificate
	nodeCA  *keyFile // certifies nodes: the one in force at once
	sshUser ssh.Signer
	sshHost ssh.Signer
	hop     ssh.Signer // a former authority for people's keys that hosts without a node still trust
	voucher ssh.Signer // nil in a ring from before vouchers
	files   map[string]string
	former  []string // files of former keys that still act
}

// suffixHop marks the file of the former authority with which the server goes
// on logging in to hosts without a node, until its time has ended.
const suffixHop = ".hop"

// rotating are the kinds that are rotated, with the file that holds the key.
var rotating = []struct{ kind, file string }{
	{ledger.KeyLog, fileLog}, {ledger.KeyOrder, fileOrder}, {ledger.KeyCA, fileCA},
	{ledger.KeySSHUser, fileSSHUserCA}, {ledger.KeySSHHost, fileSSHHostCA},
}

// file is where the key in force of that name lies.
func (k *keys) file(name string) string {
	if at, ok := k.files[name]; ok {
		return at
	}
	return name
}

func (r *Ring) loadKeys(d secureDir) error {
	k, err := readKeys(d, r.rootHash)
	if err == nil {
		r.now.Store(k)
	}
	return err
}

// readKeys reads the bundle and the keys that it names.
func readKeys(d secureDir, rootHash string) (*keys, error) {
	signed, err := d.read(fileBundle)
	if err != nil {
		return nil, err
	}
	b, err := ledger.OpenBundle(signed, rootHash)
	if err != nil {
		return nil, d.damaged(fileBundle, err)
	}
	k := &keys{bundle: b, signed: signed, files: map[string]string{}}
	if k.logs, err = b.LogEver(); err != nil {
		return nil, d.damaged(fileBundle, err)
	}
	list, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "cannot read %s", d.path)
	}
	for _, r := range rotating {
		if err := k.find(d, list, r.kind, r.file, time.Now()); err != nil {
			return nil, err
		}
	}
	if k.voucher, err = readVoucher(d); err != nil {
		return nil, err
	}
	if len(b.VoucherCA) > 0 && (k.voucher == nil || !slices.Contains(b.VoucherCA, sshLine(k.voucher.PublicKey()))) {
		return nil, otherKeys(d)
	}
	return k, nil
}

func otherKeys(d secureDir) error {
	return fault.New(fault.Conflict, "cannot open the key ring %s: its bundle names other keys than those beside it", d.path).
		WithHint("restore the whole directory from one backup")
}

// find picks the files of one kind: the key in force, and a former one. What the
// bundle does not name was made for a rotation that nobody signed, or is over.
func (k *keys) find(d secureDir, list []os.DirEntry, kind, base string, now time.Time) error {
	var current, former, hop *keyFile
	var seen bool
	for _, e := range list {
		name := e.Name()
		if name != base && !strings.HasPrefix(name, base+".") {
			continue
		}
		f, err := readKey(d, kind, name)
		if err != nil {
			return err
		}
		seen = true
		switch {
		case slices.Contains(k.bundle.Keys(kind), f.public):
			current = f
		case !k.counts(kind, f.public, now):
		case strings.HasSuffix(name, suffixHop):
			hop = f
		default:
			former = f
			k.former = append(k.former, name)
		}
	}
	if !seen {
		_, err := d.read(base) // says what is missing
		return err
	}
	if current == nil {
		return otherKeys(d)
	}
	k.files[base] = current.name
	if kind == ledger.KeyCA {
		k.files[fileCACert] = certificateOf(current.name)
	}
	k.use(kind, current, former, hop)
	return nil
}

// use puts the key that acts in its place: the former one while it is there.
func (k *keys) use(kind string, current, former, hop *keyFile) {
	acts := current
	if former != nil {
		acts = former
	}
	switch kind {
	case ledger.KeyLog:
		k.log = []note.Signer{current.note}
		if former != nil {
			k.log = append(k.log, former.note)
		}
	case ledger.KeyOrder:
		k.order = acts.ed
	case ledger.KeyCA:
		k.ca, k.caCert, k.nodeCA = acts.ca, acts.cert, current
	case ledger.KeySSHUser:
		k.sshUser = acts.ssh
		if hop != nil {
			k.hop = hop.ssh
		}
	case ledger.KeySSHHost:
		k.sshHost = acts.ssh
	}
}

// counts says whether a former key may still act.
func (k *keys) counts(kind, public string, now time.Time) bool {
	return slices.ContainsFunc(k.bundle.Former, func(f ledger.Former) bool {
		return f.Kind == kind && f.Key == public && now.Unix() < f.Until
	})
}

// hopSigner is the authority that hosts without a node trust: the former one
// until its end, so that there is time to tell them of the new one.
func (k *keys) hopSigner(now time.Time) ssh.Signer {
	if k.hop != nil && k.counts(ledger.KeySSHUser, sshLine(k.hop.PublicKey()), now) {
		return k.hop
	}
	return k.sshUser
}

// keyFile is one key of a kind, with its public half as it stands in a bundle.
type keyFile struct {
	name, public string
	note         note.Signer
	ed           ed25519.PrivateKey
	ca           *ecdsa.PrivateKey
	cert         *x509.Certificate
	ssh          ssh.Signer
}

// certificateOf is the file of the certificate beside an authority's key.
func certificateOf(keyName string) string { return fileCACert + strings.TrimPrefix(keyName, fileCA) }

func readKey(d secureDir, kind, name string) (*keyFile, error) {
	f := &keyFile{name: name}
	var err error
	switch kind {
	case ledger.KeyLog:
		var text []byte
		if text, err = d.read(name); err != nil {
			return nil, err
		}
		skey := strings.TrimSpace(string(text))
		if f.note, err = note.NewSigner(skey); err == nil {
			f.public, err = verifierKey(skey)
		}
		if err != nil {
			return nil, d.damaged(name, errors.New("not a log key")) // the cause could quote it
		}
	case ledger.KeyCA:
		if f.ca, f.cert, err = d.readAuthority(name, certificateOf(name)); err != nil {
			return nil, err
		}
		f.public = base64.StdEncoding.EncodeToString(f.cert.Raw)
	default:
		if f.ed, err = d.readEd25519(name); err != nil {
			return nil, err
		}
		if kind == ledger.KeyOrder {
			f.public = base64.StdEncoding.EncodeToString(f.ed.Public().(ed25519.PublicKey))
			break
		}
		if f.ssh, err = ssh.NewSignerFromKey(f.ed); err != nil {
			return nil, d.damaged(name, err)
		}
		f.public = sshLine(f.ssh.PublicKey())
	}
	return f, nil
}

func sshLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// firstBundle names the keys of a ring that was just made.
func firstBundle(d secureDir, origin, rootKey string) (ledger.Bundle, error) {
	b := ledger.Bundle{Version: 1, Epoch: 1, RootKey: rootKey, Origin: origin}
	for _, r := range rotating {
		f, err := readKey(d, r.kind, r.file)
		if err != nil {
			return b, err
		}
		b = named(b, r.kind, f.public)
	}
	voucher, err := readVoucher(d)
	if err == nil && voucher != nil {
		b.VoucherCA = []string{sshLine(voucher.PublicKey())}
	}
	return b, err
}

// named is the bundle with that key in force.
func named(b ledger.Bundle, kind, public string) ledger.Bundle {
	raw, _ := base64.StdEncoding.DecodeString(public)
	switch kind {
	case ledger.KeyLog:
		b.LogKey = public
	case ledger.KeyOrder:
		b.OrderKey = raw
	case ledger.KeyCA:
		b.CA = [][]byte{raw}
	case ledger.KeySSHUser:
		b.SSHUserCA = []string{public}
	case ledger.KeySSHHost:
		b.SSHHostCA = []string{public}
	}
	return b
}

// logSigner is the log's key, whatever was rotated meanwhile.
type logSigner struct{ r *Ring }

func (s logSigner) key() note.Signer { return s.r.keys().log[0] }

// Name is the log's.
func (s logSigner) Name() string { return s.key().Name() }

// KeyHash is that of the key in force.
func (s logSigner) KeyHash() uint32 { return s.key().KeyHash() }

// Sign signs by the key in force.
func (s logSigner) Sign(msg []byte) ([]byte, error) { return s.key().Sign(msg) }

// Signers are all who sign a checkpoint now.
func (s logSigner) Signers() []note.Signer { return s.r.keys().log }

// logVerifier verifies by any key that the log has ever had.
type logVerifier struct{ r *Ring }

// Name is the log's.
func (v logVerifier) Name() string { return v.r.keys().logs.Name() }

// KeyHash is that of the key in force.
func (v logVerifier) KeyHash() uint32 { return v.r.keys().logs.KeyHash() }

// Verify is that of the key in force.
func (v logVerifier) Verify(msg, sig []byte) bool { return v.r.keys().logs.Verify(msg, sig) }

// Keys are all of them.
func (v logVerifier) Keys() []note.Verifier { return v.r.keys().logs.Keys() }
