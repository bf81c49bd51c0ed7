package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMakeImportable(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  map[string]string
		err   string
	}{
		"program": {
			files: map[string]string{
				"main.go":  "// Doc.\npackage main\n\nfunc main() {\n\trun()\n}\n",
				"other.go": "package main\n\n// package main, said in a comment\nfunc run() {}\n",
			},
			want: map[string]string{
				"main.go":  "// Doc.\npackage prog\n\n// Main is the program's main function.\nfunc Main() {\n\trun()\n}\n",
				"other.go": "package prog\n\n// package main, said in a comment\nfunc run() {}\n",
			},
		},
		"two mains":      {files: map[string]string{"a.go": "package main\n\nfunc main() {\n}\n", "b.go": "package main\n\nfunc main() {\n}\n"}, err: "found `func main()` 2 times"},
		"no main":        {files: map[string]string{"a.go": "package main\n"}, err: "found `func main()` 0 times"},
		"not a program":  {files: map[string]string{"a.go": "package lib\n"}, err: "a.go: found `package main` 0 times"},
		"nothing at all": {err: "no Go files"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for f, content := range c.files {
				if err := os.WriteFile(filepath.Join(dir, f), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := makeImportable(dir, "prog")
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("got %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for f, want := range c.want {
				got, err := os.ReadFile(filepath.Join(dir, f))
				if err != nil || string(got) != want {
					t.Errorf("%s: %v\n%s", f, err, got)
				}
			}
		})
	}
}

func TestCopyModule(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	for _, f := range []string{"a.go", "a_test.go", "VERSION", "tests/x.go", "sub/testdata/y", "sub/b.c"} {
		path := filepath.Join(src, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyModule(src, dst); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]bool{"a.go": true, "a_test.go": false, "VERSION": true, "tests/x.go": false, "sub/testdata/y": false, "sub/b.c": true} {
		_, err := os.Stat(filepath.Join(dst, f))
		if (err == nil) != want {
			t.Errorf("%s: %v", f, err)
		}
	}
}
