package token

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/server/pki"
)

var (
	bundle = []byte("a certificate")
	sum    = pki.Hash(bundle)
	other  = pki.Hash([]byte("another"))
)

func TestParse(t *testing.T) {
	for in, want := range map[string]Token{
		"secret":                        {Password: "secret"},
		"a:b::c":                        {Password: "a:b::c"},
		"K10" + sum + "::server:secret": {CAHash: sum, User: "server", Password: "secret"},
		"K10" + sum + "::node:a:b::c":   {CAHash: sum, User: "node", Password: "a:b::c"},
	} {
		got, err := Parse(in)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
		if got.String() != in {
			t.Errorf("%s came back as %s", in, got)
		}
	}
	for _, in := range []string{"", "K10", "K10::server:x", "K10" + sum, "K10" + sum[1:] + "::server:x", "K10" + strings.ToUpper(sum) + "::server:x",
		"K10" + sum + "::server", "K10" + sum + "::server:", "K10" + sum + "::x", "K10" + sum + "::: x", "two words", "line\n", "nul\x00", "\xff\xfe"} {
		if got, err := Parse(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %+v, %v", in, got, err)
		} else if len(in) > 4 && strings.Contains(err.Error(), in) {
			t.Errorf("the error shows the token: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "secret", "K10", "K10" + sum + "::server:secret", "K10" + sum + ":::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			return
		}
		if tok.String() != s {
			t.Errorf("%q came back as %q", s, tok)
		}
		again, err := Parse(tok.String())
		if err != nil || again != tok {
			t.Errorf("%q: %+v, then %+v, %v", s, tok, again, err)
		}
	})
}

func newData(t *testing.T) paths.Data {
	t.Helper()
	d := paths.Data(t.TempDir())
	if err := paths.MakeDir(d.Server(), paths.ModePrivateDir); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestEnsure(t *testing.T) {
	d := newData(t)
	first, err := Ensure(d, "", bundle)
	if err != nil {
		t.Fatal(err)
	}
	if first.CAHash != sum || first.User != "server" || len(first.Password) != 32 {
		t.Fatalf("got %+v", first)
	}
	for _, name := range []string{d.Token(), d.NodeToken()} {
		if b, err := os.ReadFile(name); err != nil || string(b) != first.String()+"\n" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if st, err := os.Stat(name); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
	}
	if got, err := os.Readlink(d.NodeToken()); err != nil || got != "token" {
		t.Errorf("node-token leads to %q, %v", got, err)
	}
	for _, given := range []string{"", first.Password, first.String()} {
		if again, err := Ensure(d, given, bundle); err != nil || again != first {
			t.Errorf("second start: %+v, %v", again, err)
		}
	}
	for _, given := range []string{"something-else", "K10" + other + "::server:" + first.Password} {
		if _, err := Ensure(d, given, bundle); !errors.Is(err, ErrDifferent) {
			t.Errorf("got %v", err)
		}
	}
	if b, err := os.ReadFile(d.Token()); err != nil || string(b) != first.String()+"\n" {
		t.Errorf("the stored token changed: %q, %v", b, err)
	}
}

func TestEnsureWithGivenToken(t *testing.T) {
	for given, want := range map[string]string{
		"mine":                        "mine",
		"K10" + sum + "::server:mine": "mine",
	} {
		if got, err := Ensure(newData(t), given, bundle); err != nil || got.Password != want || got.CAHash != sum {
			t.Errorf("%s: got %+v, %v", given, got, err)
		}
	}
	if _, err := Ensure(newData(t), "K10"+other+"::server:mine", bundle); !errors.Is(err, ErrDifferent) {
		t.Errorf("token of another cluster: %v", err)
	}
	if _, err := Ensure(newData(t), "two words", bundle); !errors.Is(err, ErrInvalid) {
		t.Errorf("invalid token: %v", err)
	}
}

func TestDamagedTokenFile(t *testing.T) {
	d := newData(t)
	if err := os.WriteFile(d.Token(), []byte("K10abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(d, "", bundle); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), d.Token()) {
		t.Errorf("got %v", err)
	}
}
