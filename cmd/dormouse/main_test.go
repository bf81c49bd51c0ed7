package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	run := func() { os.Exit(doMain(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
	testscript.Main(m, map[string]func(){"dormouse": run, "kubectl": run})
}

// TestScripts runs the command line as a user would, see testdata/script. $PORT is a free port.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Setenv("PORT", strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
			// Unix sockets want short names.
			dir, err := os.MkdirTemp("", "dormouse")
			if err != nil {
				return err
			}
			e.Defer(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			e.Setenv("DIR", dir)
			return l.Close()
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"listen":  listen,
			"waitfor": waitFor,
			"oneline": func(ts *testscript.TestScript, _ bool, _ []string) {
				if out := ts.ReadFile("stderr"); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "dormouse: ") {
					ts.Fatalf("not one line that says who speaks: %q", out)
				}
			},
		},
	})
}

// listen takes a port until the script ends.
func listen(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:"+args[0])
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

// waitFor repeats a command until it succeeds, for a minute at most.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			ts.Fatalf("%q has not succeeded: %v", args, err)
		}
	}
}

func TestOneLine(t *testing.T) {
	err := errors.Join(errors.New("one"), fmt.Errorf("two\n  three\n"), nil)
	if got := oneLine(err); got != "one; two; three" {
		t.Errorf("got %q", got)
	}
}
