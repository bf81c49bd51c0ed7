// Command rt prepares the sources that cmd/dormouse-rt is built from.
//
// runc and the CNI plugins are programs (package main), which Go does not let
// another package import. They are wanted as libraries all the same: one small
// multi-call ELF instead of six. So this command copies their modules, at the
// versions go.mod names, below the output directory, renames in the packages
// listed here `package main` to an importable name and `func main()` to
// `func Main()`, and writes beside them rt.mod and rt.sum: go.mod and go.sum
// with a replace directive for each copy. The module paths stay the same, so
// each module's own internal packages keep working, and nothing but the two
// words is changed.
//
//	go run ./packaging/rt -o build/rt
//	go build -modfile=build/rt/rt.mod -tags=dormouse_rt,… ./cmd/dormouse-rt
//
// It fails when a file does not look as expected, so that a new version of a
// program cannot go through half changed.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// program is a package main that becomes importable.
type program struct {
	dir  string // below the module's root
	name string // package name to give it
}

// modules lists what dormouse-rt is made of.
var modules = []struct {
	path     string
	programs []program
}{
	{"github.com/opencontainers/runc", []program{{".", "runc"}}},
	{"github.com/containernetworking/plugins", []program{
		{"plugins/main/bridge", "bridge"},
		{"plugins/main/loopback", "loopback"},
		{"plugins/ipam/host-local", "hostlocal"},
		{"plugins/meta/firewall", "firewall"},
		{"plugins/meta/portmap", "portmap"},
	}},
}

func main() {
	out := flag.String("o", "build/rt", "directory to write, below the repository's root; replaced if it exists")
	flag.Parse()
	if err := generate(*out); err != nil {
		fmt.Fprintln(os.Stderr, "rt:", err)
		os.Exit(1)
	}
}

// generate writes the module copies and rt.mod/rt.sum to out. Nothing is left
// at out when it fails.
func generate(out string) error {
	if filepath.IsAbs(out) {
		return fmt.Errorf("output directory %s must be relative to the repository's root", out)
	}
	// A replace directive of -modfile is relative to the main module's root.
	if _, err := os.Stat("go.mod"); err != nil {
		return fmt.Errorf("run at the repository's root: %w", err)
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	tmp := out + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	edit := []string{"mod", "edit"}
	for _, m := range modules {
		src, err := moduleDir(m.path)
		if err != nil {
			return err
		}
		dst := filepath.Join(tmp, filepath.Base(m.path))
		if err := copyModule(src, dst); err != nil {
			return fmt.Errorf("copy module %s: %w", m.path, err)
		}
		for _, p := range m.programs {
			if err := makeImportable(filepath.Join(dst, p.dir), p.name); err != nil {
				return fmt.Errorf("make %s/%s importable: %w", m.path, p.dir, err)
			}
		}
		edit = append(edit, "-replace="+m.path+"=./"+filepath.Join(out, filepath.Base(m.path)))
	}
	for from, to := range map[string]string{"go.mod": "rt.mod", "go.sum": "rt.sum"} {
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tmp, to), b, 0o644); err != nil {
			return err
		}
	}
	edit = append(edit, filepath.Join(tmp, "rt.mod"))
	if b, err := exec.Command("go", edit...).CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", strings.Join(edit, " "), err, b)
	}
	return os.Rename(tmp, out)
}

// moduleDir returns where the module cache holds the version that go.mod names.
func moduleDir(path string) (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", path)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go mod download %s: %w", path, err)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(b, &m); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", path, err)
	}
	if m.Dir == "" {
		return "", fmt.Errorf("go mod download %s: no directory", path)
	}
	return m.Dir, nil
}

// copyModule copies a module without its tests.
func copyModule(src, dst string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (d.Name() == "tests" || d.Name() == "testdata" || d.Name() == "vendor"):
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dst, rel), 0o755)
		case !d.Type().IsRegular(), strings.HasSuffix(d.Name(), "_test.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dst, rel), b, 0o644)
	})
}

var (
	packageClause = regexp.MustCompile(`(?m)^package main$`)
	mainFunc      = regexp.MustCompile(`(?m)^func main\(\) \{$`)
)

// makeImportable renames package main in dir to name, and its main to Main.
func makeImportable(dir, name string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return err
	}
	mains := 0
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if n := len(packageClause.FindAll(src, -1)); n != 1 {
			return fmt.Errorf("%s: found `package main` %d times, want once", filepath.Base(f), n)
		}
		mains += len(mainFunc.FindAll(src, -1))
		src = packageClause.ReplaceAll(src, []byte("package "+name))
		src = mainFunc.ReplaceAll(src, []byte("// Main is the program's main function.\nfunc Main() {"))
		if err := os.WriteFile(f, src, 0o644); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return errors.New("no Go files")
	}
	if mains != 1 {
		return fmt.Errorf("found `func main()` %d times, want once", mains)
	}
	return nil
}
