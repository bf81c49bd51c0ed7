package snapshot

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func openMarks(t *testing.T, path, boot string) *Marks {
	t.Helper()
	m, err := OpenMarks(path, boot)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// crash ends the use of m as the end of the process would.
func crash(t *testing.T, m *Marks) {
	t.Helper()
	if err := m.file.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMarks(t *testing.T) {
	for name, c := range map[string]struct {
		end     func(t *testing.T, m *Marks)
		boot    string
		inDoubt string // of "marked", "cleared" and "untouched"
	}{
		"orderly end":                      {orderly, "boot", "marked"},
		"orderly end, then another boot":   {orderly, "another", "marked"},
		"crash of the process":             {crash, "boot", "marked"},
		"crash of the machine":             {crash, "another", "marked cleared untouched"},
		"file removed":                     {remove, "boot", "marked cleared untouched"},
		"file of another version":          {rewrite("dormouse marks 2\nboot\nclean\nend\n"), "boot", "marked cleared untouched"},
		"file cut short":                   {rewrite("dormouse marks 1\nboot\nmar"), "boot", "marked cleared untouched"},
		"file empty":                       {rewrite(""), "boot", "marked cleared untouched"},
		"header only":                      {rewrite("dormouse marks 1\nend\n"), "boot", "marked cleared untouched"},
		"remains of a longer one":          {rewrite("dormouse marks 1\nboot\nmarked\nend\nred\nend\n"), "boot", "marked"},
		"nothing was marked, orderly end":  {rewrite("dormouse marks 1\nboot\nclean\nend\n"), "another", ""},
		"nothing was marked, then a crash": {rewrite("dormouse marks 1\nboot\nend\n"), "boot", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "awake")
			m := openMarks(t, path, "boot")
			if !m.InDoubt("marked") {
				t.Error("without a file nothing is in doubt")
			}
			for _, f := range []error{m.Set("cleared"), m.Set("marked"), m.Set("marked"), m.Clear("cleared"), m.Clear("cleared")} {
				if f != nil {
					t.Fatal(f)
				}
			}
			c.end(t, m)
			for range 2 { // the second time shows that nothing was forgotten
				m = openMarks(t, path, c.boot)
				var got []string
				for _, guest := range []string{"marked", "cleared", "untouched"} {
					if m.InDoubt(guest) {
						got = append(got, guest)
					}
				}
				if strings.Join(got, " ") != c.inDoubt {
					t.Errorf("in doubt: %q, want %q", got, c.inDoubt)
				}
				if strings.Contains(c.inDoubt, "untouched") {
					break // the next time the generation tells, see Head
				}
				crash(t, m)
			}
		})
	}
}

func orderly(t *testing.T, m *Marks) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, m *Marks) {
	t.Helper()
	crash(t, m)
	if err := os.Remove(m.file.Name()); err != nil {
		t.Fatal(err)
	}
}

func rewrite(text string) func(*testing.T, *Marks) {
	return func(t *testing.T, m *Marks) {
		t.Helper()
		crash(t, m)
		if err := os.WriteFile(m.file.Name(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMarkClearedAtNextRun: the guest starts cold, and from then on it is in order.
func TestMarkClearedAtNextRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "awake")
	m := openMarks(t, path, "boot")
	if err := m.Set("a"); err != nil {
		t.Fatal(err)
	}
	crash(t, m)
	m = openMarks(t, path, "boot")
	if err := m.Clear("a"); err != nil {
		t.Fatal(err)
	}
	crash(t, m)
	if m = openMarks(t, path, "boot"); m.InDoubt("a") {
		t.Error("in doubt still")
	}
	crash(t, m)
}

// TestMarkThatCannotBeWritten: a mark that is not on disk must not be taken for
// set, whatever is called next.
func TestMarkThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "awake")
	m := openMarks(t, path, "boot")
	if err := m.Set("before"); err != nil {
		t.Fatal(err)
	}
	crash(t, m) // from here on writes fail
	for range 2 {
		if m.Set("a") == nil {
			t.Error("set without a file")
		}
		if m.Clear("before") == nil {
			t.Error("cleared without a file")
		}
		if m.Set("before") == nil {
			t.Error("set again without a file")
		}
	}
	var err error
	if m.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Set("a"); err != nil {
		t.Fatal(err)
	}
	crash(t, m)
	m = openMarks(t, path, "boot")
	if !m.InDoubt("a") || !m.InDoubt("before") {
		t.Error("a mark was lost")
	}
	crash(t, m)
}

func TestOpenMarksFails(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "awake")} {
		if _, err := OpenMarks(path, "boot"); err == nil {
			t.Errorf("opened %s", path)
		}
	}
}

func FuzzMarks(f *testing.F) {
	for _, text := range []string{"", "\n", "dormouse marks 1\nboot\nend\n", "dormouse marks 1\nboot\na\nb\nclean\nend\n", "dormouse marks 1\nboot\n\nend"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		read := func(text string) *Marks {
			m := &Marks{boot: "boot", before: map[string]bool{}}
			m.parse(text)
			return m
		}
		m := read(text)
		sound := strings.HasPrefix(text, marksHeader+"\n") && strings.HasSuffix(strings.TrimSuffix(text, "\n"), "\nend")
		trusted := strings.HasPrefix(text, marksHeader+"\nboot\n") || strings.Contains(text, "\nclean\n")
		if !m.doubt && !(sound && trusted) {
			t.Errorf("%q is trusted", text)
		}
		if m.doubt {
			return
		}
		// What is written again for these marks says the same.
		again := read(marksHeader + "\nboot\n" + strings.Join(append(slices.Sorted(maps.Keys(m.before)), "end\n"), "\n"))
		if again.doubt || !maps.Equal(again.before, m.before) {
			t.Errorf("%q became %v, and then %v", text, m.before, again.before)
		}
	})
}
