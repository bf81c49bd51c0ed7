package module

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"
)

// whole is a file with an empty module.
func whole(t testing.TB) []byte {
	t.Helper()
	config, err := EngineConfig()
	if err != nil {
		t.Fatal(err)
	}
	engine := wasmtime.NewEngineWithConfig(config)
	defer engine.Close()
	m, err := wasmtime.NewModule(engine, []byte("\x00asm\x01\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	image, err := m.Serialize()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Encode(image, Info{Digest: "d1", Globals: []string{"a", "b"}, Pages: 7})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func file(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "test.cwasm")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoad(t *testing.T) {
	name := file(t, whole(t))
	m, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Digest != "d1" || len(m.Globals) != 2 || m.Pages != 7 {
		t.Errorf("%+v", m.Info)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	b := whole(t)
	edit := func(old, new string) []byte {
		if len(old) != len(new) || bytes.Count(b, []byte(old)) != 1 {
			t.Fatalf("cannot replace %q by %q", old, new)
		}
		return bytes.Replace(b, []byte(old), []byte(new), 1)
	}
	other, err := Encode([]byte("\x7fELT and so on"), Info{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
		text string
	}{
		{"empty", nil, ErrInvalid, "only 0 bytes"},
		{"no module", bytes.Repeat([]byte("x"), 1000), ErrInvalid, "end is missing"},
		{"cut", b[:len(b)-1], ErrInvalid, "end is missing"},
		{"byte missing", append(b[:99:99], b[100:]...), ErrInvalid, "bytes of code"},
		{"metadata", edit(`{"format"`, `["format"`), ErrInvalid, "metadata"},
		{"format", edit(`"format":2`, `"format":3`), ErrVersion, "format 3"},
		{"wire format", edit(`"abi":2`, `"abi":9`), ErrVersion, "wire format 9"},
		{"wasmtime", edit(WasmtimeVersion, strings.Repeat("1", len(WasmtimeVersion))), ErrVersion, "wasmtime 1"},
		{"a bit of the code", edit("\x7fELF", "\x7fELG"), ErrInvalid, "wrong checksum"},
		{"other code", other, ErrInvalid, "Unsupported ELF header"},
	} {
		if _, err := Load(file(t, c.b)); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", c.name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func TestWasmtimeVersionIsThatOfGoMod(t *testing.T) {
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "github.com/bytecodealliance/wasmtime-go/v39 " + WasmtimeVersion + "\n"; !strings.Contains(string(b), want) {
		t.Errorf("go.mod does not require %s", want)
	}
}

func FuzzReadInfo(f *testing.F) {
	f.Add(whole(f))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := readInfo(bytes.NewReader(b), int64(len(b)))
		if err == nil && info.Format == FormatVersion && (info.Size < 0 || info.Size > int64(len(b))) {
			t.Fatalf("accepted %+v", info)
		}
	})
}
