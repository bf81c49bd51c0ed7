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
		users := []string{controllerManager, "system:kube-scheduler"}
		if !strings.HasPrefix(d.Identity, serviceAccount) && !slices.Contains(users, d.Identity) {
			t.Errorf("%s: identity %q", d.Name, d.Identity)
		}
		if d.MemoryLimit <= 0 || d.RunLimit <= 0 {
			t.Errorf("%s has no limits", d.Name)
		}
		all := slices.Contains(d.Resources, "*")
		watched := func(r string) bool { return all || slices.Contains(d.Resources, r) }
		for r := range d.Wait {
			if r != "*" && !watched(r) {
				t.Errorf("%s: events of %s may wait, but are not watched", d.Name, r)
			}
		}
		for r := range d.Late {
			if r != "*" && !watched(r) {
				t.Errorf("%s: events of %s may be late, but are not watched", d.Name, r)
			}
		}
		for r, kinds := range d.Owned {
			if !watched(r) || len(kinds) == 0 {
				t.Errorf("%s: owners %v of %s", d.Name, kinds, r)
			}
		}
		for r, fields := range d.Having {
			if !watched(r) || len(fields) == 0 {
				t.Errorf("%s: %s having %v", d.Name, r, fields)
			}
			for _, f := range fields {
				if f.Name == "" || len(f.Path) == 0 {
					t.Errorf("%s: %s having %+v", d.Name, r, f)
				}
			}
		}
		for r, fields := range d.Urgent {
			if !watched(r) || d.MayWait(r) == 0 || len(fields) == 0 {
				t.Errorf("%s: %s urgent with %v, of which no event may wait", d.Name, r, fields)
			}
		}
		for r, fields := range d.Changing {
			if r != "*" && !watched(r) || d.MayWait(r)&Modified == 0 || len(fields) == 0 {
				t.Errorf("%s: changes of %v of %s, whose changes wake it anyway", d.Name, fields, r)
			}
		}
		for r, fields := range d.Counting {
			_, having := d.Having[r]
			_, purpose := d.Purpose[r]
			counts := slices.Contains(d.TimersFor, r)
			for _, others := range d.Without {
				counts = counts || slices.Contains(others, r)
			}
			if !counts || having || purpose || len(fields) == 0 {
				t.Errorf("%s: %s counting with %v", d.Name, r, fields)
			}
		}
		for r, others := range d.Without {
			if !watched(r) || len(others) == 0 || slices.Contains(others, r) {
				t.Errorf("%s: %s without %v", d.Name, r, others)
			}
			for _, o := range others {
				_, owned := d.Owned[o]
				_, having := d.Having[o]
				_, without := d.Without[o]
				if o == "*" || !watched(o) || d.MayWait(o)&Added != 0 || owned || having || without {
					t.Errorf("%s: %s wait until there are %s, which do not wake it when they come", d.Name, r, o)
				}
			}
		}
		for _, r := range d.TimersFor {
			if r == "*" || !watched(r) {
				t.Errorf("%s: timers are for %s, which is not watched", d.Name, r)
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
