package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func tarOf(t testing.TB, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func TestOpenTar(t *testing.T) {
	plain := tarOf(t, "manifest.json", "[]")
	for name, data := range map[string][]byte{"tar": plain, "gzip": gzipOf(t, plain), "zstd": zstdOf(t, plain)} {
		t.Run(name, func(t *testing.T) {
			r, err := openTar(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, plain) {
				t.Errorf("got %d bytes, want the %d of the tar file", len(got), len(plain))
			}
		})
	}
}

func TestOpenTarRefuses(t *testing.T) {
	plain := tarOf(t, "manifest.json", "[]")
	for name, c := range map[string]struct {
		data []byte
		want error // nil: any error
	}{
		"empty":             {nil, errNotTar},
		"text":              {[]byte(strings.Repeat("not an archive\n", 100)), errNotTar},
		"short":             {plain[:100], errNotTar},
		"gzip of text":      {gzipOf(t, []byte("hello")), errNotTar},
		"gzip, cut":         {gzipOf(t, plain)[:15], nil},
		"zstd, cut":         {zstdOf(t, plain)[:10], nil},
		"gzip, magic alone": {gzipMagic, nil},
		"gzip of zstd":      {gzipOf(t, zstdOf(t, plain)), errNotTar},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openTar(bytes.NewReader(c.data))
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func FuzzOpenTar(f *testing.F) {
	plain := tarOf(f, "manifest.json", "[]")
	for _, seed := range [][]byte{nil, plain, gzipOf(f, plain), zstdOf(f, plain), gzipMagic, zstdMagic} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := openTar(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer r.Close()
		head := make([]byte, tarMagicOffset+len(tarMagic))
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatalf("accepted, but shorter than a tar header: %v", err)
		}
		if string(head[tarMagicOffset:]) != tarMagic {
			t.Error("accepted, but the stream has no tar header")
		}
	})
}

func TestIsArchiveName(t *testing.T) {
	for name, want := range map[string]bool{
		"a.tar": true, "a.tar.gz": true, "a.tgz": true, "a.tar.zst": true,
		"a.tar.tmp": false, ".a.tar": false, "a.zip": false, "a.tar.bz2": false, "readme.txt": false,
	} {
		if got := isArchiveName(name); got != want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.json")
	l, err := openLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	r := record{File: "web.tar", Images: map[string]string{"docker.io/dormouse/web:v1": "sha256:aa"}}
	if err := l.add("sha256:00", r); err != nil {
		t.Fatal(err)
	}
	again, err := openLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, l) {
		t.Errorf("read back %+v, want %+v", again, l)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestLedgerFormat(t *testing.T) {
	l, err := openLedger("testdata/ledger-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]record{"sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03": {
		File: "web.tar.zst", Images: map[string]string{"docker.io/dormouse/web:v1": "sha256:e258d248fda94c63753607f7c4494ee0fcbe92f1a76bfdac795c9d84101eb317"},
	}}
	if !reflect.DeepEqual(l.Archives, want) {
		t.Errorf("got %+v", l.Archives)
	}
}

func TestLedgerDamaged(t *testing.T) {
	for name, content := range map[string]string{
		"cut": `{"version":1,"archives":{"sha`, "other version": `{"version":2,"archives":{"x":{}}}`, "empty": "", "null": "null",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "images.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := openLedger(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Archives) != 0 {
				t.Errorf("took over %v", l.Archives)
			}
			if err := l.add("sha256:00", record{}); err != nil {
				t.Error(err)
			}
		})
	}
}
