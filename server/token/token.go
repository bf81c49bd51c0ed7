// Package token reads, makes and keeps the secret with which machines join a cluster.
//
// Its full form is K10<hash>::<user>:<password>. The hash is the SHA-256 of the cluster's CA bundle in
// hexadecimal, so a machine that has the token recognises the right server at first contact. The short
// form is the password alone.
package token

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

// ServerUser is the user name in a server's token.
const ServerUser = "server"

const prefix = "K10"

// Errors of Parse and Ensure, to be wrapped.
var (
	ErrInvalid   = errors.New("invalid token")
	ErrDifferent = errors.New("different token")
)

// Token is a parsed token. CAHash and User are empty in the short form.
type Token struct {
	CAHash, User, Password string
}

var hash = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Parse reads a token in either form. No error contains the token.
func Parse(s string) (Token, error) {
	rest, full := strings.CutPrefix(s, prefix)
	if !full {
		return Token{Password: s}, checkPassword(s)
	}
	sum, credentials, ok := strings.Cut(rest, "::")
	if !ok {
		return Token{}, fmt.Errorf("%w: it begins with %s and has no \"::\" after the hash", ErrInvalid, prefix)
	}
	if !hash.MatchString(sum) {
		return Token{}, fmt.Errorf("%w: after %s come 64 lower-case hexadecimal digits, the SHA-256 of the CA bundle", ErrInvalid, prefix)
	}
	user, password, ok := strings.Cut(credentials, ":")
	if !ok || user == "" {
		return Token{}, fmt.Errorf("%w: after \"::\" comes user:password", ErrInvalid)
	}
	if err := checkName(user); err != nil {
		return Token{}, err
	}
	return Token{CAHash: sum, User: user, Password: password}, checkPassword(password)
}

func checkPassword(p string) error {
	if p == "" {
		return fmt.Errorf("%w: the password is empty", ErrInvalid)
	}
	return checkName(p)
}

func checkName(s string) error {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return fmt.Errorf("%w: it contains a space or a character that cannot be printed", ErrInvalid)
	}
	return nil
}

// String is the full form, or the password if there is no hash.
func (t Token) String() string {
	if t.CAHash == "" {
		return t.Password
	}
	return prefix + t.CAHash + "::" + t.User + ":" + t.Password
}

// Check says whether a server whose stored token is in the file of data may start with the token given
// by its configuration, without writing anything. An empty token means the stored one, or a new one.
func Check(data paths.Data, given string) error {
	if given == "" {
		return nil
	}
	want, err := Parse(given)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	stored, err := load(data.Token())
	if err != nil || stored == nil {
		return err
	}
	if stored.Password != want.Password || want.CAHash != "" && want.CAHash != stored.CAHash {
		return fmt.Errorf("%w: --token is not the token this server was created with, which is in %s; leave --token out to use that one", ErrDifferent, data.Token())
	}
	return nil
}

// Ensure returns the server's token and sees to it that the file of data holds it, with the hash of
// bundle, and that node-token leads there. given is the configured token, or "" for the stored one or a
// new random one.
func Ensure(data paths.Data, given string, bundle []byte) (Token, error) {
	if err := Check(data, given); err != nil {
		return Token{}, err
	}
	t := Token{CAHash: pki.Hash(bundle), User: ServerUser}
	if stored, err := load(data.Token()); err != nil {
		return Token{}, err
	} else if stored != nil {
		t.Password = stored.Password
	} else if given != "" {
		want, err := Parse(given)
		if err != nil {
			return Token{}, fmt.Errorf("--token: %w", err)
		}
		if want.CAHash != "" && want.CAHash != t.CAHash {
			return Token{}, fmt.Errorf("%w: --token is of a cluster with another certificate authority; give its password alone to use it here", ErrDifferent)
		}
		t.Password = want.Password
	} else {
		t.Password = random()
	}
	if err := paths.Write(data.Token(), []byte(t.String()+"\n"), paths.ModePrivateFile); err != nil {
		return Token{}, err
	}
	return t, link("token", data.NodeToken())
}

// load returns the token in file, or nil if there is no such file.
func load(file string) (*Token, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the token: %w", err)
	}
	t, err := Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged, restore it from a backup: %w", file, err)
	}
	return &t, nil
}

func random() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// link makes name a symbolic link to target.
func link(target, name string) error {
	if got, err := os.Readlink(name); err == nil && got == target {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replacing %s: %w", name, err)
	}
	if err := os.Symlink(target, name); err != nil {
		return fmt.Errorf("creating %s: %w", name, err)
	}
	return nil
}
