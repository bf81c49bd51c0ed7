package overlay

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
)

// apply returns text without the declarations that are not kept, and without the
// imports that nothing uses any more.
func (t Trim) apply(text []byte) ([]byte, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, t.File, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	missing := slices.Clone(t.Keep)
	keep := func(name string) bool {
		if k := slices.Index(missing, name); k >= 0 {
			missing = slices.Delete(missing, k, k+1)
			return true
		}
		return slices.Contains(t.Keep, name)
	}
	var decls []ast.Decl
	var gone []*ast.CommentGroup // of what is left out of groups
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok != token.IMPORT {
			g.Specs = slices.DeleteFunc(g.Specs, func(s ast.Spec) bool {
				if slices.ContainsFunc(specNames(s), keep) {
					return false
				}
				if v, ok := s.(*ast.ValueSpec); ok {
					gone = append(gone, v.Doc, v.Comment)
				}
				return true
			})
			if len(g.Specs) == 0 {
				continue
			}
		}
		if fn, ok := d.(*ast.FuncDecl); ok && !keep(funcName(fn)) {
			continue
		}
		decls = append(decls, d)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("it has no %s", strings.Join(missing, ", "))
	}
	f.Decls = decls
	dropUnusedImports(f)
	f.Comments = slices.DeleteFunc(f.Comments, func(c *ast.CommentGroup) bool {
		return slices.Contains(gone, c) || c.Pos() > f.Package && !slices.ContainsFunc(f.Decls, func(d ast.Decl) bool {
			return c.Pos() >= start(d) && c.End() <= d.End()
		})
	})
	return source(fset, f)
}

// source is the text of a file.
func source(fset *token.FileSet, f *ast.File) ([]byte, error) {
	var b bytes.Buffer
	if err := (&printer.Config{Mode: printer.UseSpaces | printer.TabIndent, Tabwidth: 8}).Fprint(&b, fset, f); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// start is where a declaration begins, with its comment.
func start(d ast.Decl) token.Pos {
	var doc *ast.CommentGroup
	switch d := d.(type) {
	case *ast.FuncDecl:
		doc = d.Doc
	case *ast.GenDecl:
		doc = d.Doc
	}
	if doc != nil {
		return doc.Pos()
	}
	return d.Pos()
}

// specNames are the names that a specification declares.
func specNames(s ast.Spec) []string {
	switch s := s.(type) {
	case *ast.TypeSpec:
		return []string{s.Name.Name}
	case *ast.ValueSpec:
		names := make([]string, len(s.Names))
		for i, n := range s.Names {
			names[i] = n.Name
		}
		return names
	}
	return nil
}

// funcName is the name of a function, or "Type.Method".
func funcName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	t := f.Recv.List[0].Type
	if p, ok := t.(*ast.StarExpr); ok {
		t = p.X
	}
	if g, ok := t.(*ast.IndexExpr); ok {
		t = g.X
	}
	return t.(*ast.Ident).Name + "." + f.Name.Name
}

// dropUnusedImports removes imports whose package is not named in the file.
// Imports for their effect stay.
func dropUnusedImports(f *ast.File) {
	used := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok {
				used[x.Name] = true
			}
		}
		return true
	})
	unused := func(s ast.Spec) bool {
		return !slices.ContainsFunc(importNames(s.(*ast.ImportSpec)), func(name string) bool { return name == "_" || used[name] })
	}
	f.Decls = slices.DeleteFunc(f.Decls, func(d ast.Decl) bool {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.IMPORT {
			return false
		}
		g.Specs = slices.DeleteFunc(g.Specs, unused)
		return len(g.Specs) == 0
	})
}

// importNames are the names by which a file may know an imported package: the one
// that it gives, or the last part of the path, or the one before a version.
func importNames(s *ast.ImportSpec) []string {
	if s.Name != nil {
		return []string{s.Name.Name}
	}
	p := strings.Trim(s.Path.Value, `"`)
	names := []string{path.Base(p)}
	if version.MatchString(names[0]) {
		names = append(names, path.Base(path.Dir(p)))
	}
	return names
}

var version = regexp.MustCompile(`^v[0-9]+$`)
