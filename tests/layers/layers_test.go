// Package layers holds the repository to its layers: who may import whom, and what only a program may do. The same
// import rules stand in .golangci.yml for editors; this test needs nothing but the source and a second.
package layers

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/dormouse-k8s/dormouse"
)

// rule says what packages below from must not import.
type rule struct {
	from   string
	except []string // packages below from that the rule does not bind
	deny   []string // a package of this module, or of another, and all below it; "*" is all but the standard library
	why    string

	notTests bool // the rule does not bind tests
}

var rules = []rule{
	{from: ".", except: []string{"cmd"}, deny: []string{module + "/cmd"}, why: "cmd puts the others together, nobody needs it"},
	{from: ".", except: []string{"tests"}, deny: []string{module + "/tests"}, why: "tests use the program, not the other way round"},
	{from: "server", deny: []string{module + "/agent", module + "/wasmplane"}, why: "the layers meet through interfaces, in cmd"},
	{from: "agent", deny: []string{module + "/server", module + "/wasmplane"}, why: "the layers meet through interfaces, in cmd"},
	{from: "wasmplane", deny: []string{module + "/server", module + "/agent"}, why: "the layers meet through interfaces, in cmd"},
	{from: "internal", deny: []string{module + "/server", module + "/agent", module + "/wasmplane"}, why: "internal is below the layers"},
	{from: "wasmplane/abi", deny: []string{"*"}, why: "host and guest both use it, in any program"},
	// The overlay is source of upstream's own packages.
	// Tests may compare what the plane reads with Kubernetes' own encodings.
	{from: "wasmplane", except: []string{"wasmplane/controllers/guest", "wasmplane/module/overlay"}, deny: []string{"k8s.io"}, notTests: true,
		why: "the plane sees HTTP; only the guest program knows Kubernetes"},
}

// within reports whether a package is another one or below it.
func within(pkg, top string) bool {
	return top == "." || pkg == top || strings.HasPrefix(pkg, top+"/")
}

// violation returns why a package, named by its directory, or a test in it, must not import another, or "".
func violation(pkg, imported string, test bool) string {
	first, _, _ := strings.Cut(imported, "/")
	standard := !strings.Contains(first, ".")
	for _, r := range rules {
		if test && r.notTests || !within(pkg, r.from) || slices.ContainsFunc(r.except, func(top string) bool { return within(pkg, top) }) {
			continue
		}
		for _, deny := range r.deny {
			if deny == "*" && !standard || deny != "*" && within(imported, deny) {
				return r.why
			}
		}
	}
	return ""
}

// onlyPrograms are functions that belong in a main package: a library returns errors and takes configuration.
var onlyPrograms = map[string][]string{
	"os":                         {"Exit", "Getenv", "LookupEnv", "Environ", "ExpandEnv", "Setenv", "Unsetenv", "Clearenv", "Chdir"},
	"log":                        {"Fatal", "Fatalf", "Fatalln"},
	"syscall":                    {"Exit", "Chdir", "Getenv", "Setenv"},
	"k8s.io/klog/v2":             {"Fatal", "Fatalf", "Fatalln", "FatalDepth", "Exit", "Exitf", "Exitln", "ExitDepth"},
	"github.com/sirupsen/logrus": {"Fatal", "Fatalf", "Fatalln", "Exit"},
}

// sources calls visit for each Go file of the repository with the directory it is in.
func sources(t *testing.T, visit func(dir string, fset *token.FileSet, file *ast.File)) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			// What make produces is not ours to judge, and testdata is data.
			if rel == "bin" || rel == "build" || entry.Name() == "testdata" || len(rel) > 2 && strings.HasPrefix(entry.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse %s: %w", rel, err)
		}
		files++
		visit(filepath.ToSlash(filepath.Dir(rel)), fset, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Errorf("only %d Go files found: looked in the wrong place?", files)
	}
}

func TestImports(t *testing.T) {
	sources(t, func(dir string, fset *token.FileSet, file *ast.File) {
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			test := strings.HasSuffix(fset.Position(spec.Pos()).Filename, "_test.go")
			if why := violation(dir, imported, test); why != "" {
				t.Errorf("%s imports %s: %s", fset.Position(spec.Pos()), imported, why)
			}
		}
	})
}

func TestOnlyProgramsExitAndReadTheEnvironment(t *testing.T) {
	sources(t, func(dir string, fset *token.FileSet, file *ast.File) {
		// The guest's side of the plane is what ends a guest program.
		if file.Name.Name == "main" || within(dir, "tests") || within(dir, "wasmplane/guest") || strings.HasSuffix(fset.File(file.Pos()).Name(), "_test.go") {
			return
		}
		names := map[string]string{} // local name of a package -> its import path
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			name := path.Base(strings.TrimSuffix(imported, "/v2"))
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = imported
		}
		ast.Inspect(file, func(node ast.Node) bool {
			selector, ok := node.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := selector.X.(*ast.Ident)
			if !ok {
				return true
			}
			for _, function := range onlyPrograms[names[pkg.Name]] {
				if selector.Sel.Name == function {
					t.Errorf("%s: %s.%s: only a program may do that", fset.Position(selector.Pos()), pkg.Name, function)
				}
			}
			return true
		})
	})
}

// TestRules: the rules refuse what they are meant to, and no more.
func TestRules(t *testing.T) {
	for _, test := range []struct {
		pkg, imported string
		refused       bool
	}{
		{"cmd/dormouse", module + "/server", false},
		{"cmd/dormouse", module + "/wasmplane/plane", false},
		{"server", module + "/agent", true},
		{"server/apiserver", module + "/wasmplane/abi", true},
		{"server", module + "/server/pki", false},
		{"serverless", module + "/agent", false},
		{"server", module + "/internal/service", false},
		{"server", "k8s.io/kubernetes/pkg/controlplane", false},
		{"server", module + "/cmd/dormouse", true},
		{"agent/kubelet", module + "/server/pki", true},
		{"internal/service", module + "/agent", true},
		{"wasmplane/plane", module + "/server", true},
		{"wasmplane/plane", "k8s.io/apimachinery/pkg/watch", true},
		{"wasmplane/guest", "k8s.io/client-go/rest", true},
		{"wasmplane/controllers", "k8s.io/api/core/v1", true},
		{"wasmplane/controllers/guest", "k8s.io/kubernetes/pkg/controller/deployment", false},
		{"wasmplane/controllers/guest", module + "/server", true},
		{"wasmplane/abi", "encoding/binary", false},
		{"wasmplane/abi", "github.com/sirupsen/logrus", true},
		{"wasmplane/abi", module + "/internal/paths", true},
		{"tests/e2e", module + "/server", false},
		{"agent", module + "/tests/node", true},
	} {
		if why := violation(test.pkg, test.imported, false); (why != "") != test.refused {
			t.Errorf("%s imports %s: refused is %v (%s), want %v", test.pkg, test.imported, why != "", why, test.refused)
		}
	}
}
