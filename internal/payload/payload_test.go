package payload

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// write makes a file below dir and returns its name.
func write(t testing.TB, dir, name string, mode os.FileMode, b []byte) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, mode); err != nil {
		t.Fatal(err)
	}
	return file
}

// compress is quicker than what releases are packed with.
func compress(file string) (io.ReadCloser, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(e.EncodeAll(b, nil))), nil
}

// packed makes a program with two files behind it.
func packed(t testing.TB, module string) string {
	t.Helper()
	dir := t.TempDir()
	program := write(t, dir, "build/program", 0o755, []byte("\x7fELF and so on"))
	files := []string{
		write(t, dir, "build/"+Runtime, 0o755, bytes.Repeat([]byte("runtime "), 100_000)),
		write(t, dir, "build/"+Controllers, 0o644, []byte(module)),
	}
	var out bytes.Buffer
	if err := Append(&out, program, files, compress); err != nil {
		t.Fatal(err)
	}
	return write(t, dir, "bin/program", 0o755, out.Bytes())
}

func TestUnpack(t *testing.T) {
	data := t.TempDir()
	program := packed(t, "module")
	dir, err := Locate(program, data)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		content string
		mode    os.FileMode
	}{
		Runtime:     {strings.Repeat("runtime ", 100_000), 0o755},
		Controllers: {"module", 0o644},
	} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != want.content {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != want.mode {
			t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
		}
	}

	before, _ := os.Stat(filepath.Join(dir, Runtime))
	again, err := Locate(program, data)
	if err != nil || again != dir {
		t.Fatalf("second time: %s, %v", again, err)
	}
	if after, _ := os.Stat(filepath.Join(dir, Runtime)); !os.SameFile(before, after) {
		t.Error("complete files were unpacked again")
	}

	for _, damaged := range []string{"m", "modulE", "module and more"} {
		write(t, dir, Controllers, 0o644, []byte(damaged))
		if _, err := Locate(program, data); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, Controllers)); string(b) != "module" {
			t.Errorf("a file damaged as %q was left as %q", damaged, b)
		}
	}
}

func TestSizes(t *testing.T) {
	a, err := Open(packed(t, "module"))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if packed, unpacked, ok := a.Sizes(Runtime); !ok || unpacked != 800_000 || packed <= 0 || packed > 10_000 {
		t.Errorf("%d of %d bytes, %v", packed, unpacked, ok)
	}
	if _, _, ok := a.Sizes("nothing"); ok {
		t.Error("a file that is not there has a size")
	}
}

func TestUnpackKeepsThePreviousVersion(t *testing.T) {
	data := t.TempDir()
	write(t, data, "data/notes/mine", 0o644, nil)
	write(t, data, "data/"+temporary+"1/half", 0o644, nil)
	var dirs []string
	for i, module := range []string{"one", "two", "three"} {
		dir, err := Locate(packed(t, module), data)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	for i, want := range []bool{false, true, true} {
		if _, err := os.Stat(dirs[i]); (err == nil) != want {
			t.Errorf("version %d: %v", i, err)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "data/notes/mine")); err != nil {
		t.Error("something foreign was removed")
	}
	if _, err := os.Stat(filepath.Join(data, "data", temporary+"1")); err == nil {
		t.Error("what was left half done is still there")
	}
}

func TestDamageIsFound(t *testing.T) {
	program := packed(t, rand.Text())
	whole, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for _, f := range a.index.Files {
		b := bytes.Clone(whole)
		b[f.Offset+f.Packed/2] ^= 1
		data := t.TempDir()
		if _, err := Locate(write(t, data, "program", 0o755, b), data); !errors.Is(err, ErrInvalid) {
			t.Errorf("a flipped bit in %s: %v", f.Name, err)
		}
		if _, err := os.Stat(filepath.Join(data, "data")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a flipped bit in %s left something: %v", f.Name, err)
		}
	}
	b := bytes.Replace(whole, []byte(`"format":2`), []byte(`"format":7`), 1)
	if _, err := Open(write(t, t.TempDir(), "program", 0o755, b)); !errors.Is(err, ErrInvalid) {
		t.Errorf("an unknown format: %v", err)
	}
	b = append(whole[:100:100], whole[101:]...)
	if _, err := Open(write(t, t.TempDir(), "program", 0o755, b)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a missing byte: %v", err)
	}
}

func TestPackTwice(t *testing.T) {
	program := packed(t, "module")
	again := write(t, t.TempDir(), Controllers, 0o644, []byte("other"))
	var out bytes.Buffer
	if err := Append(&out, program, []string{again}, compress); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out.Bytes(), []byte(magic)); n != 1 {
		t.Errorf("%d archives in the file", n)
	}
	dir, err := Locate(write(t, t.TempDir(), "program", 0o755, out.Bytes()), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("unpacked %v", names)
	}
}

func TestUnpackedLayout(t *testing.T) {
	for _, layout := range []string{"bin", "lib/dormouse"} {
		root := t.TempDir()
		program := write(t, root, "bin/program", 0o755, []byte("\x7fELF"))
		want := filepath.Dir(write(t, root, layout+"/"+Runtime, 0o755, nil))
		link := filepath.Join(t.TempDir(), "kubectl")
		if err := os.Symlink(program, link); err != nil {
			t.Fatal(err)
		}
		dir, err := Locate(link, "/nonexistent")
		if err != nil || dir != want {
			t.Errorf("%s: %s, %v", layout, dir, err)
		}
	}
	alone := write(t, t.TempDir(), "program", 0o755, []byte("\x7fELF"))
	if _, err := Locate(alone, t.TempDir()); !errors.Is(err, ErrNoArchive) {
		t.Errorf("nothing anywhere: %v", err)
	}
}

func FuzzReadIndex(f *testing.F) {
	whole, err := os.ReadFile(packed(f, "module"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, _, err := readIndex(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, f := range x.Files {
			if f.Offset+f.Packed > int64(len(b)) || strings.Contains(f.Name, "/") {
				t.Fatalf("accepted %+v", f)
			}
		}
	})
}
