// Command bench measures a server without an agent, its controllers and scheduler asleep in Wasm against the same
// running natively, side by side in one run of one binary, and against upstream's own programs over TLS, which is how k3s
// has them: start, memory, CPU and disk at idle, the way from a Deployment to its pods, many Deployments at once, and many
// pods. It prints tables, sets the figures against what is to be reached, and writes everything as JSON, and memory over
// time as a picture. Figures never make it fail; a server that does not do its work does.
//
// All servers listen on the loopback address and keep their data in a directory of their own. The node is hollow: pods
// are bound to it and said to run. What is measured is the control plane.
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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() { os.Exit(doMain(os.Args[1:], os.Stdout, os.Stderr)) }

// settings say how long and how often to measure.
type settings struct {
	Binary      string        `json:"binary"`
	Starts      int           `json:"starts"`      // fresh data directories per mode
	Settle      time.Duration `json:"settle"`      // from the last change to the first look at memory
	Idle        time.Duration `json:"idle"`        // over which memory, CPU, disk and wakes are counted
	Pods        int           `json:"pods"`        // of a cluster with many
	Samples     int           `json:"samples"`     // Deployments for each latency
	Burst       int           `json:"burst"`       // Deployments created at once
	Bursts      int           `json:"bursts"`      // how often, for each mode
	Figure      time.Duration `json:"figure"`      // shown by the figure
	Budget      int64         `json:"budget"`      // of the plane, in bytes
	ServerFlags []string      `json:"serverFlags"` // given to every server
	Profiles    string        `json:"profiles"`    // directory for pprof files; none if empty
}

func doMain(args []string, stdout, stderr io.Writer) int {
	if len(args) > 1 && args[0] == upstreamVerb {
		return runUpstream(args[1:])
	}
	s := settings{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	jsonFile := flags.String("json", "build/bench.json", "write all figures to this `file`")
	svgFile := flags.String("svg", "build/memory.svg", "write the figure of memory over time to this `file`")
	dir := flags.String("dir", "", "keep data and logs in this `directory`, which must be empty (default: a temporary one)")
	only := flags.String("phases", strings.Join(phaseNames, ","), "what to measure")
	quick := flags.Bool("quick", false, "measure little and wait shortly: to see that it works")
	hour := flags.Bool("hour", false, "measure at idle for an hour")
	budget := flags.Int64("budget", 64, "memory budget of the plane, in `MiB`")
	flags.StringVar(&s.Binary, "dormouse", "bin/dormouse", "the `program` to measure")
	flags.IntVar(&s.Starts, "starts", 5, "starts with a fresh data directory, for each mode")
	flags.DurationVar(&s.Settle, "settle", 5*time.Minute, "time from the last change until memory is measured")
	flags.DurationVar(&s.Idle, "idle", 10*time.Minute, "time over which memory, CPU, disk and wakes are counted")
	flags.IntVar(&s.Pods, "pods", 1000, "pods of a cluster with many")
	flags.IntVar(&s.Samples, "samples", 50, "Deployments for each latency")
	flags.IntVar(&s.Burst, "burst", 100, "Deployments created at once")
	flags.IntVar(&s.Bursts, "bursts", 3, "how often, for each mode")
	flags.DurationVar(&s.Figure, "figure", 10*time.Minute, "time that the figure shows")
	flags.StringVar(&s.Profiles, "profiles", "", "put heap and CPU profiles of the servers into this `directory`; costs some memory and CPU")
	flags.Func("server-flag", "`flag` for every server, repeatable, for instance --wasm-idle-timeout=1s", func(v string) error {
		s.ServerFlags = append(s.ServerFlags, v)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *quick {
		set := map[string]bool{}
		flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
		for name, value := range map[string]string{"starts": "1", "settle": "15s", "idle": "15s", "pods": "200", "samples": "5", "burst": "20", "bursts": "1", "figure": "1m"} {
			if !set[name] {
				_ = flags.Set(name, value) // constants, which parse
			}
		}
	}
	if *hour {
		s.Idle = time.Hour
	}
	s.Budget = *budget << 20
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s, *only, *dir, *jsonFile, *svgFile, stdout); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

// run measures the phases in order. What was measured before an error is printed and written all the same.
func run(ctx context.Context, s settings, phases, dir, jsonFile, svgFile string, out io.Writer) (err error) {
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
	if b.report.Module, err = moduleOf(s.Binary); err != nil {
		return err
	}
	b.report.Machine.print(out)
	fmt.Fprintf(out, "data and logs in %s\n", dir)

	err = b.phases(ctx, strings.Split(phases, ","))
	b.report.Bars = b.report.bars()
	b.report.print(out)
	text, encodeErr := json.MarshalIndent(b.report, "", "  ")
	if encodeErr != nil {
		return errors.Join(err, fmt.Errorf("encoding the figures: %w", encodeErr))
	}
	written := []string{jsonFile}
	err = errors.Join(err, writeFile(jsonFile, append(text, '\n')))
	if f := b.report.Figure; f != nil {
		written = append(written, svgFile)
		err = errors.Join(err, writeFile(svgFile, f.svg()))
	}
	fmt.Fprintf(out, "\nwritten to %s\n", strings.Join(written, " and "))
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

// mode is a way to run the controllers and the scheduler.
type mode struct {
	name        string
	title       string // in tables
	flags       []string
	controllers bool // there are some
	upstream    bool // as upstream's own programs beside the server
	listed      bool // somebody lists and watches everything once, see listAll
}

// nothing has a server run neither controllers nor the scheduler.
var nothing = []string{"--controller-mode=native", "--disable-controller-manager", "--disable-scheduler"}

var (
	wasm   = mode{name: "wasm", title: "Wasm", flags: []string{"--controller-mode=wasm"}, controllers: true}
	native = mode{name: "native", title: "native", flags: []string{"--controller-mode=native"}, controllers: true}
	k3sWay = mode{name: "k3s", title: "as k3s does", flags: nothing, controllers: true, upstream: true}
	bare   = mode{name: "bare", title: "none", flags: nothing}
	listed = mode{name: "listed", title: "none, and everything listed once", flags: nothing, listed: true}
)

// phaseNames are what can be measured, in order.
var phaseNames = []string{"figure", "start", "idle", "pods", "rollout", "burst"}

func (b *bench) phases(ctx context.Context, names []string) (err error) {
	want := map[string]bool{}
	for _, name := range names {
		if !slices.Contains(phaseNames, name) {
			return fmt.Errorf("no phase %q: there are %s", name, strings.Join(phaseNames, ", "))
		}
		want[name] = true
	}
	for _, phase := range []struct {
		name, what string
		measure    func(context.Context) error
	}{
		{"figure", "memory for the figure", b.figure},
		{"start", "starts", b.starts},
		{"idle", "at idle", b.idle},
		{"pods", "many pods", b.pods},
	} {
		if want[phase.name] {
			if err := phase.measure(ctx); err != nil {
				return fmt.Errorf("measuring %s: %w", phase.what, err)
			}
		}
	}
	if !want["rollout"] && !want["burst"] {
		return nil
	}
	servers, stop, err := b.startServers(ctx, "work", wasm, native, k3sWay)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, s := range servers {
		if err := s.prepare(ctx); err != nil {
			return err
		}
	}
	if want["rollout"] {
		if err := b.rollouts(ctx, servers[0], servers[1], servers[2]); err != nil {
			return fmt.Errorf("measuring rollouts: %w", err)
		}
	}
	if want["burst"] {
		if err := b.bursts(ctx, servers); err != nil {
			return fmt.Errorf("measuring a burst: %w", err)
		}
	}
	b.report.Plane, err = planeFigures(ctx, servers[0])
	return err
}

// startServers starts a server in each mode, for a phase. stop ends all.
func (b *bench) startServers(ctx context.Context, phase string, modes ...mode) (servers []*server, stop func() error, err error) {
	each := func(do func(*server) error) error {
		errs := make([]error, len(servers))
		var all sync.WaitGroup
		for k, s := range servers {
			all.Go(func() { errs[k] = do(s) })
		}
		all.Wait()
		return errors.Join(errs...)
	}
	stop = func() error { return each((*server).stop) }
	for _, m := range modes {
		s, err := b.newServer(m, phase+"-"+m.name)
		if err != nil {
			return nil, nil, err
		}
		servers = append(servers, s)
	}
	err = each(func(s *server) error {
		_, err := s.start(ctx)
		return err
	})
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return servers, stop, nil
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

func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the directory of the figures: %w", err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	return nil
}
