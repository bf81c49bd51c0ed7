// Command bench measures a server without an agent, its controllers asleep in Wasm against the same controllers
// running natively, side by side in one run of one binary: start, memory, CPU and disk at idle, the way from a
// Deployment to its pods, and many Deployments at once. It prints tables and writes everything as JSON. Figures never
// make it fail; a server that does not do its work does.
//
// All servers listen on the loopback address and keep their data in a directory of their own. There is no node, so
// pods are objects that nobody runs: what is measured is the control plane.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

func main() { os.Exit(doMain(os.Args[1:], os.Stdout, os.Stderr)) }

// settings say how long and how often to measure.
type settings struct {
	Binary      string        `json:"binary"`
	Starts      int           `json:"starts"`      // fresh data directories per mode
	Settle      time.Duration `json:"settle"`      // from the last change to the first look at memory
	Idle        time.Duration `json:"idle"`        // over which CPU, disk and wakes are counted
	Samples     int           `json:"samples"`     // Deployments for each latency
	Burst       int           `json:"burst"`       // Deployments created at once
	ServerFlags []string      `json:"serverFlags"` // given to every server
	Profiles    string        `json:"profiles"`    // directory for pprof files; none if empty
}

func doMain(args []string, stdout, stderr io.Writer) int {
	s := settings{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	jsonFile := flags.String("json", "build/bench.json", "write all figures to this `file`")
	dir := flags.String("dir", "", "keep data and logs in this `directory`, which must be empty (default: a temporary one)")
	only := flags.String("phases", "start,idle,rollout,burst", "what to measure")
	quick := flags.Bool("quick", false, "measure little and wait shortly: to see that it works")
	flags.StringVar(&s.Binary, "dormouse", "bin/dormouse", "the `program` to measure")
	flags.IntVar(&s.Starts, "starts", 5, "starts with a fresh data directory, for each mode")
	flags.DurationVar(&s.Settle, "settle", 5*time.Minute, "time from the last change until memory is measured")
	flags.DurationVar(&s.Idle, "idle", 10*time.Minute, "time over which CPU, disk and wakes are counted")
	flags.IntVar(&s.Samples, "samples", 50, "Deployments for each latency")
	flags.IntVar(&s.Burst, "burst", 100, "Deployments created at once")
	flags.StringVar(&s.Profiles, "profiles", "", "put heap and CPU profiles of the servers into this `directory`; costs some memory and CPU")
	flags.Func("server-flag", "`flag` for every server, repeatable, for instance --wasm-memory-budget=256Mi", func(v string) error {
		s.ServerFlags = append(s.ServerFlags, v)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *quick {
		set := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
		for name, value := range map[string]string{"starts": "1", "settle": "15s", "idle": "15s", "samples": "5", "burst": "20"} {
			if !set[name] {
				_ = flags.Set(name, value) // constants, which parse
			}
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s, *only, *dir, *jsonFile, stdout); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// run measures the phases in order. What was measured before an error is printed and written all the same.
func run(ctx context.Context, s settings, phases, dir, jsonFile string, out io.Writer) (err error) {
	if s.Binary, err = filepath.Abs(s.Binary); err != nil {
		return fmt.Errorf("finding the program: %w", err)
	}
	dir, remove, err := workDir(dir)
	if err != nil {
		return err
	}
	b := &bench{settings: s, dir: dir, out: out, report: Report{Settings: s}}
	if b.report.Machine, err = describeMachine(ctx, s.Binary, dir); err != nil {
		return err
	}
	b.report.Machine.print(out)
	fmt.Fprintf(out, "data and logs in %s\n", dir)

	err = b.phases(ctx, strings.Split(phases, ","))
	b.report.print(out)
	if writeErr := writeJSON(jsonFile, b.report); writeErr != nil {
		err = errors.Join(err, writeErr)
	} else {
		fmt.Fprintf(out, "\nwritten to %s\n", jsonFile)
	}
	if err != nil {
		return fmt.Errorf("%w; logs of the servers are in %s", err, dir)
	}
	return remove()
}

// workDir returns a directory to work in and what removes it.
func workDir(dir string) (string, func() error, error) {
	if dir == "" {
		temporary, err := os.MkdirTemp("", "dormouse-bench-")
		if err != nil {
			return "", nil, fmt.Errorf("making a directory for data and logs: %w", err)
		}
		return temporary, func() error { return os.RemoveAll(temporary) }, nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("making the directory for data and logs: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, err
	}
	if len(entries) > 0 {
		return "", nil, fmt.Errorf("directory %s is not empty", dir)
	}
	return dir, func() error { return nil }, nil
}

// bench is one run.
type bench struct {
	settings
	dir    string
	out    io.Writer
	report Report
}

// mode is a way to run the controllers.
type mode struct {
	name  string
	flags []string
}

var (
	wasm   = mode{"wasm", []string{"--controller-mode=wasm"}}
	native = mode{"native", []string{"--controller-mode=native"}}
)

// without is native less those controllers that are guests in wasm: what the plane is added to.
func without() mode {
	var off strings.Builder
	for _, d := range controllers.All() {
		off.WriteString("-" + d.Name + ",")
	}
	return mode{"without", []string{"--controller-mode=native", "--kube-controller-manager-arg=controllers=" + off.String() + "*"}}
}

func (b *bench) phases(ctx context.Context, names []string) (err error) {
	want := map[string]bool{}
	for _, name := range names {
		switch name {
		case "start", "idle", "rollout", "burst":
			want[name] = true
		default:
			return fmt.Errorf("no phase %q: there are start, idle, rollout and burst", name)
		}
	}
	if want["start"] {
		if err := b.starts(ctx); err != nil {
			return fmt.Errorf("measuring starts: %w", err)
		}
	}
	if !want["idle"] && !want["rollout"] && !want["burst"] {
		return nil
	}

	modes := []mode{wasm, native}
	if want["idle"] {
		modes = append(modes, without())
	}
	servers := map[string]*server{}
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, m := range modes {
		s, err := b.newServer(m, m.name)
		if err != nil {
			return err
		}
		if _, err := s.start(ctx); err != nil {
			return err
		}
		servers[m.name] = s
	}
	if want["idle"] {
		if err := b.idle(ctx, servers); err != nil {
			return fmt.Errorf("measuring at idle: %w", err)
		}
		err := servers["without"].stop()
		delete(servers, "without")
		if err != nil {
			return err
		}
	}
	pair := []*server{servers[wasm.name], servers[native.name]}
	for _, s := range pair {
		if err := s.makeNamespace(ctx); err != nil {
			return err
		}
	}
	if want["rollout"] {
		if err := b.rollouts(ctx, pair[0], pair[1]); err != nil {
			return fmt.Errorf("measuring rollouts: %w", err)
		}
	}
	if want["burst"] {
		if err := b.bursts(ctx, pair); err != nil {
			return fmt.Errorf("measuring a burst: %w", err)
		}
	}
	b.report.Plane, err = planeFigures(ctx, pair[0])
	return err
}

// say tells what goes on; it may take half an hour.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}

// profile saves a profile of a server's. path is below /debug/pprof/.
func (b *bench) profile(ctx context.Context, s *server, path string, query url.Values) error {
	if b.Profiles == "" {
		return nil
	}
	if err := os.MkdirAll(b.Profiles, 0o755); err != nil {
		return fmt.Errorf("making the directory for profiles: %w", err)
	}
	body, err := s.get(ctx, "/debug/pprof/"+path, query)
	if err != nil {
		return fmt.Errorf("getting the %s profile of %s: %w", path, s.name, err)
	}
	return os.WriteFile(filepath.Join(b.Profiles, s.name+"-"+path+".pprof"), body, 0o644)
}

func writeJSON(path string, report Report) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the figures: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the directory of the figures: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	return nil
}
