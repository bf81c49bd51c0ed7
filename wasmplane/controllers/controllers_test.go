package controllers

import (
	"slices"
	"strings"
	"testing"
)

func TestDeclarations(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range All() {
		if seen[d.Name] {
			t.Errorf("%s is declared twice", d.Name)
		}
		seen[d.Name] = true
		if !strings.HasPrefix(d.Identity, serviceAccount) {
			t.Errorf("%s: identity %q", d.Name, d.Identity)
		}
		if d.MemoryLimit <= 0 || d.RunLimit <= 0 {
			t.Errorf("%s has no limits", d.Name)
		}
		all := slices.Contains(d.Resources, "*")
		watched := func(r string) bool { return all || slices.Contains(d.Resources, r) }
		for r := range d.Wait {
			if !watched(r) {
				t.Errorf("%s: events of %s may wait, but are not watched", d.Name, r)
			}
		}
		for _, r := range d.Grants {
			if !watched(r) {
				t.Errorf("%s: granted %s, which is not watched", d.Name, r)
			}
		}
		if h := d.Heartbeat; h.Resource != "" && (!watched(h.Resource) || h.Within <= 0 || d.TimerSlack == 0) {
			t.Errorf("%s: heartbeat %+v", d.Name, h)
		}
	}
}
