package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

const (
	// readyPatience is how long a server may take to start, stopPatience to end.
	readyPatience = 3 * time.Minute
	stopPatience  = time.Minute
	// sleepPatience is how long all controllers may take to be asleep when told to. Those that are not measured are
	// waited for no longer than for memory to settle, though at least for restlessPatience.
	sleepPatience    = time.Minute
	restlessPatience = 5 * time.Second
)

// subjects are the controllers between a Deployment and its pods.
var subjects = []string{controllers.DeploymentController, controllers.ReplicaSetController}

// server is a server without an agent, running or not. Started again it continues with its data.
type server struct {
	mode
	name   string // of its directory and log
	dir    string
	binary string
	flags  []string
	port   int

	cmd    *exec.Cmd
	ended  chan error
	beside []*component // upstream's, if the mode has them beside the server
	node   *hollow      // nil: none
	http   *http.Client
	url    string
	client kubernetes.Interface

	restless map[string]string // guests that do not stay asleep, and why
	patience time.Duration     // until a guest is one of them
}

// newServer makes a server with a data directory of its own. It does not run yet.
func (b *bench) newServer(m mode, name string) (*server, error) {
	s := &server{mode: m, name: name, dir: filepath.Join(b.dir, name), binary: b.Binary, restless: map[string]string{},
		patience: min(sleepPatience, max(b.Settle, restlessPatience))}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of a server: %w", err)
	}
	if err := os.WriteFile(s.file("config.yaml"), nil, 0o600); err != nil {
		return nil, fmt.Errorf("writing the configuration of a server: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("looking for a free port: %w", err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, err
	}
	s.flags = []string{
		"server", "--disable-agent", "--config=" + s.file("config.yaml"), "--data-dir=" + s.file("data"),
		"--write-kubeconfig=" + s.file("kubeconfig"), "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
		fmt.Sprintf("--https-listen-port=%d", s.port),
	}
	if b.Profiles != "" {
		s.flags = append(s.flags, "--kube-apiserver-arg=profiling=true")
	}
	s.flags = append(append(s.flags, m.flags...), fmt.Sprintf("--wasm-memory-budget=%dMi", b.Budget>>20))
	s.flags = append(s.flags, b.ServerFlags...)
	return s, nil
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

// start starts the server and waits until it says, as it does to systemd, that it is ready. It returns how long that
// took from the start of the process.
func (s *server) start(ctx context.Context) (took time.Duration, err error) {
	socket := s.file("notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return 0, fmt.Errorf("listening for the server to be ready: %w", err)
	}
	defer os.Remove(socket)
	defer conn.Close()
	log, err := os.OpenFile(s.file("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return 0, fmt.Errorf("opening the log of a server: %w", err)
	}
	defer log.Close()
	s.cmd = exec.Command(s.binary, s.flags...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}

	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return 0, fmt.Errorf("starting a server: %w", err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.cmd.Wait() }()
	if err := s.awaitReady(ctx, conn); err != nil {
		return 0, errors.Join(fmt.Errorf("%s: %w", s.name, err), s.stop())
	}
	took = time.Since(began)
	if err := s.connect(); err != nil {
		return took, errors.Join(err, s.stop())
	}
	if s.upstream {
		if err := s.startUpstream(); err != nil {
			return took, errors.Join(err, s.stop())
		}
	}
	if s.listed {
		if err := s.listAll(ctx); err != nil {
			return took, errors.Join(err, s.stop())
		}
	}
	return took, nil
}

func (s *server) awaitReady(ctx context.Context, conn *net.UnixConn) error {
	ready := make(chan error, 1)
	if err := conn.SetReadDeadline(time.Now().Add(readyPatience)); err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil || strings.Contains(string(buf[:n]), "READY=1") {
				ready <- err
				return
			}
		}
	}()
	select {
	case err := <-ready:
		if err != nil {
			return fmt.Errorf("waiting for the server to be ready: %w", err)
		}
		return nil
	case err := <-s.ended:
		s.ended <- err
		return fmt.Errorf("the server ended before it was ready: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect makes the clients.
func (s *server) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", s.file("kubeconfig"))
	if err != nil {
		return fmt.Errorf("reading the kubeconfig of %s: %w", s.name, err)
	}
	config.QPS = -1
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	if s.http, err = rest.HTTPClientFor(config); err != nil {
		return fmt.Errorf("building a client of %s: %w", s.name, err)
	}
	s.url = strings.TrimSuffix(config.Host, "/")
	if s.client, err = kubernetes.NewForConfigAndClient(config, s.http); err != nil {
		return fmt.Errorf("building a client of %s: %w", s.name, err)
	}
	return nil
}

// stop ends the server and waits for it. It does nothing to one that does not run.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	var errs []error
	if s.node != nil {
		errs = append(errs, s.node.end())
		s.node = nil
	}
	for _, c := range s.beside {
		errs = append(errs, c.stop())
	}
	s.beside = nil
	if s.http != nil {
		s.http.CloseIdleConnections()
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may be gone; then Wait says how
	select {
	case err := <-s.ended:
		if err != nil {
			errs = append(errs, fmt.Errorf("%s ended badly: %w", s.name, err))
		}
	case <-time.After(stopPatience):
		_ = s.cmd.Process.Kill()
		errs = append(errs, fmt.Errorf("%s did not end within %s: %w", s.name, stopPatience, <-s.ended))
	}
	s.cmd = nil
	return errors.Join(errs...)
}

// startNode gives the server a node.
func (s *server) startNode(ctx context.Context) (err error) {
	if s.node, err = startNode(ctx, s.client); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	return nil
}

// alive says whether the server still runs.
func (s *server) alive() error {
	select {
	case err := <-s.ended:
		s.ended <- err
		return fmt.Errorf("%s ended: %w", s.name, err)
	default:
		return nil
	}
}

// pids are the processes of the server: itself first, then what runs beside it.
func (s *server) pids() []int {
	pids := []int{s.cmd.Process.Pid}
	for _, c := range s.beside {
		pids = append(pids, c.cmd.Process.Pid)
	}
	return pids
}

// statusError is an answer that is no success.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.code, e.text) }

func (s *server) request(ctx context.Context, method, path string, query url.Values) ([]byte, error) {
	address := s.url + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s of %s: %w", method, path, s.name, err), s.alive())
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return nil, fmt.Errorf("%s %s of %s: %w", method, path, s.name, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s of %s: %w", method, path, s.name, &statusError{resp.StatusCode, strings.TrimSpace(body.String())})
	}
	return body.Bytes(), nil
}

func (s *server) get(ctx context.Context, path string, query url.Values) ([]byte, error) {
	return s.request(ctx, http.MethodGet, path, query)
}

// metrics reads the server's metrics.
func (s *server) metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	body, err := s.get(ctx, "/metrics", nil)
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("reading the metrics of %s: %w", s.name, err)
	}
	return families, nil
}

const controllersPath = "/v1-dormouse/wasm/controllers"

// guests is what `dormouse wasm list` shows, less what runs natively.
func (s *server) guests(ctx context.Context) ([]plane.Status, error) {
	body, err := s.get(ctx, controllersPath, nil)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Controllers []plane.Status `json:"controllers"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("reading the controllers of %s: %w", s.name, err)
	}
	var guests []plane.Status
	for _, c := range answer.Controllers {
		if c.State != plane.Native {
			guests = append(guests, c)
		}
	}
	return guests, nil
}

// lastWakes are the last wakes of a guest, oldest first.
func (s *server) lastWakes(ctx context.Context, guest string) ([]plane.Wake, error) {
	body, err := s.get(ctx, controllersPath+"/"+guest, nil)
	if err != nil {
		return nil, err
	}
	var detail plane.Detail
	if err := json.Unmarshal(body, &detail); err != nil {
		return nil, fmt.Errorf("reading what %s says of %s: %w", s.name, guest, err)
	}
	return detail.LastWakes, nil
}

func (s *server) command(ctx context.Context, guest, verb string) error {
	_, err := s.request(ctx, http.MethodPost, controllersPath+"/"+guest+"/"+verb, nil)
	return err
}

// evict puts every guest to sleep and returns once all have been asleep for quiet. Without guests it waits for quiet.
// A guest that will not stay asleep is noted as restless and not waited for again, unless it is a subject of the
// measurements: then that is an error.
func (s *server) evict(ctx context.Context, quiet time.Duration) error {
	since := time.Now()
	for began := since; ; {
		guests, err := s.guests(ctx)
		if err != nil {
			return err
		}
		for _, g := range guests {
			if g.State == plane.Asleep {
				continue
			}
			var busy *statusError
			err := s.command(ctx, g.Name, "evict")
			if err != nil && !(errors.As(err, &busy) && busy.code == http.StatusConflict) { // the next round finds it idle
				return err
			}
			if s.restless[g.Name] != "" {
				continue
			}
			since = time.Now()
			waited, subject := since.Sub(began), slices.Contains(subjects, g.Name)
			switch {
			case subject && waited > sleepPatience:
				return fmt.Errorf("%s of %s does not stay asleep: %s", g.Name, s.name, g.LastWakeReason)
			case !subject && waited > s.patience:
				s.restless[g.Name] = g.LastWakeReason
			}
		}
		if time.Since(since) >= quiet {
			return nil
		}
		if err := pause(ctx, quiet/10); err != nil {
			return err
		}
	}
}

// wake brings the guests into memory, the subjects last so that they are the last to be evicted again.
func (s *server) wake(ctx context.Context) error {
	guests, err := s.guests(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, g := range guests {
		if !slices.Contains(subjects, g.Name) {
			names = append(names, g.Name)
		}
	}
	for _, name := range append(names, subjects...) {
		if err := s.command(ctx, name, "wake"); err != nil {
			return err
		}
	}
	if guests, err = s.guests(ctx); err != nil {
		return err
	}
	for _, g := range guests {
		if slices.Contains(subjects, g.Name) && g.State != plane.Warm && g.State != plane.Awake {
			return fmt.Errorf("%s of %s is %s after it was woken", g.Name, s.name, g.State)
		}
	}
	return nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
