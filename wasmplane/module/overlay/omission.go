package overlay

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
)

// Omission leaves packages out of a file of upstream that only lists them: elements of
// lists, cases of switches, methods of interfaces and functions whose types name one,
// and imports for its effect.
type Omission struct {
	Module   string   // module path
	File     string   // path of the file in the module
	Packages []string // import paths; each has to be imported by the file
	Reason   string
}

// apply returns text without what names one of the packages.
func (o Omission) apply(text []byte) ([]byte, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, o.File, text, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	names, err := o.names(f)
	if err != nil {
		return nil, err
	}
	mentions := func(n ast.Node) (found bool) {
		ast.Inspect(n, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && names[x.Name] {
					found = true
				}
			}
			return !found
		})
		return found
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			n.Elts = slices.DeleteFunc(n.Elts, func(e ast.Expr) bool { return mentions(e) })
		case *ast.InterfaceType:
			n.Methods.List = slices.DeleteFunc(n.Methods.List, func(m *ast.Field) bool { return mentions(m.Type) })
		case *ast.SwitchStmt:
			n.Body.List = slices.DeleteFunc(n.Body.List, func(s ast.Stmt) bool {
				return slices.ContainsFunc(s.(*ast.CaseClause).List, func(e ast.Expr) bool { return mentions(e) })
			})
		}
		return true
	})
	f.Decls = slices.DeleteFunc(f.Decls, func(d ast.Decl) bool {
		fn, ok := d.(*ast.FuncDecl)
		return ok && mentions(fn.Type)
	})
	dropUnusedImports(f)
	// Comments within declarations belong to what may be gone.
	f.Comments = slices.DeleteFunc(f.Comments, func(c *ast.CommentGroup) bool {
		return c.Pos() > f.Package && !slices.ContainsFunc(f.Decls, func(d ast.Decl) bool { return c.Pos() >= start(d) && c.End() < d.Pos() })
	})
	return source(fset, f)
}

// names are the names by which the file knows the packages. Imports for their effect
// are removed from it.
func (o Omission) names(f *ast.File) (map[string]bool, error) {
	names, missing := map[string]bool{}, slices.Clone(o.Packages)
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.IMPORT {
			continue
		}
		g.Specs = slices.DeleteFunc(g.Specs, func(s ast.Spec) bool {
			i := s.(*ast.ImportSpec)
			k := slices.Index(missing, strings.Trim(i.Path.Value, `"`))
			if k < 0 {
				return false
			}
			missing = slices.Delete(missing, k, k+1)
			known := importNames(i)
			for _, name := range known {
				names[name] = true
			}
			return known[0] == "_"
		})
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("it does not import %s", strings.Join(missing, ", "))
	}
	return names, nil
}
