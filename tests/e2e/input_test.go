package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dormouse-k8s/dormouse/internal/payload"
	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/node"
)

// machine is a machine on which dormouse is installed but has never run.
type machine struct {
	*node.Node
	t      *testing.T
	binary string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	path, err := filepath.Abs(*binaryFlag)
	if err != nil {
		t.Fatal(err)
	}
	n, err := node.Start(t.Context(), node.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &machine{n, t, "/run/bin/dormouse"}
	// Where other users find it too.
	m.sh("mkdir -p /run/bin && touch /run/bin/dormouse && mount --bind '" + path + "' /run/bin/dormouse")
	return m
}

// sh runs a script on the machine.
func (m *machine) sh(script string) string {
	m.t.Helper()
	out, err := m.Exec(m.t.Context(), "sh", "-e", "-c", script)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// files describes every file that a server might make or change.
func (m *machine) files() string {
	m.t.Helper()
	return m.sh(`find /etc /var/lib /var/log /run -xdev -type d -printf '%p %y %m\n' -o -printf '%p %y %m %s %T@\n' | sort`)
}

// refusal runs a command line that must be refused: exit code 1, nothing on
// standard output, one line beside those of level info on standard error, no
// file changed. It returns the line.
func (m *machine) refusal(name string, args ...string) string {
	m.t.Helper()
	before := m.files()
	ctx, cancel := context.WithTimeout(m.t.Context(), startPatience)
	defer cancel()
	cmd := m.Command(name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	// A server that starts instead is not left running.
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	err := cmd.Wait()
	stop()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		m.t.Errorf("exit status: %v, want 1", err)
	}
	if stdout.Len() > 0 {
		m.t.Errorf("standard output: %q", stdout.String())
	}
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(stderr.String()), "\n"), func(line string) bool {
		return strings.Contains(line, "level=info")
	})
	if len(lines) != 1 {
		m.t.Errorf("%d lines on standard error, want one:\n%s", len(lines), stderr.String())
	}
	if after := m.files(); after != before {
		m.t.Errorf("files changed:\n%s", difference(before, after))
	}
	return strings.Join(lines, "\n")
}

// difference is the lines that only one of two sorted lists has.
func difference(before, after string) string {
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, line := range old {
		if _, found := slices.BinarySearch(now, line); !found {
			fmt.Fprintln(&b, "-", line)
		}
	}
	for _, line := range now {
		if _, found := slices.BinarySearch(old, line); !found {
			fmt.Fprintln(&b, "+", line)
		}
	}
	return b.String()
}

// TestBadInput: what cannot work is refused in one line that says which, why, and
// what would do, and nothing on disk has changed.
func TestBadInput(t *testing.T) {
	m := newMachine(t)
	for _, c := range []struct {
		name   string
		before string // script that spoils the machine
		after  string // and mends it
		env    []string
		args   []string // after dormouse
		says   string   // the line
	}{
		{name: "unknown command", args: []string{"serve"}, says: `unknown command "serve"`},
		{name: "unknown flag", args: []string{"server", "--no-such-flag"}, says: `--no-such-flag.*--help`},
		{name: "argument too many", args: []string{"server", "now"}, says: `"now".*--help`},
		{name: "port", args: []string{"server", "--https-listen-port=many"}, says: `"many".*--https-listen-port.*1 to 65535`},
		{name: "range", args: []string{"server", "--cluster-cidr=10.42.0.0"}, says: `"10\.42\.0\.0".*--cluster-cidr.*10\.42\.0\.0/16`},
		{name: "overlapping ranges", args: []string{"server", "--cluster-cidr=10.43.0.0/16"}, says: `cluster-cidr.*service-cidr.*overlap`},
		{name: "size", args: []string{"server", "--wasm-memory-budget=lots"}, says: `"lots".*--wasm-memory-budget.*64MiB`},
		{name: "duration", args: []string{"server", "--wasm-idle-timeout=2"}, says: `"2".*--wasm-idle-timeout.*2s`},
		{name: "native controllers", args: []string{"server", "--native-controllers=ttl-controller,docker"}, says: `native-controllers.*"docker".*deployment-controller.*kube-scheduler`},
		{name: "unknown controller", args: []string{"server", "--kube-controller-manager-arg=controllers=*,-docker"}, says: `kube-controller-manager-arg.*"docker"`},
		{name: "native migrator", args: []string{"server", "--native-controllers=storage-version-migrator-controller"}, says: `storage-version-migrator-controller.*garbage-collector-controller.*native-controllers`},
		{name: "mode", args: []string{"server", "--controller-mode=docker"}, says: `"docker".*--controller-mode.*wasm.*native`},
		{name: "argument of the kubelet", args: []string{"server", "--kubelet-arg=no-such-thing=1"}, says: `no-such-thing`},
		{name: "argument of the API server", args: []string{"server", "--disable-agent", "--kube-apiserver-arg=no-such-thing=1"}, says: `no-such-thing`},
		{name: "environment", env: []string{"DORMOUSE_NODE_IP=here"}, args: []string{"server"}, says: `DORMOUSE_NODE_IP.*here`},
		{name: "no configuration file", args: []string{"server", "--config=/etc/none.yaml"}, says: `/etc/none\.yaml`},
		{
			name: "configuration file is no YAML", before: `printf 'debug: [\n' >/etc/dormouse/config.yaml`,
			args: []string{"server"}, says: `/etc/dormouse/config\.yaml.*line \d`,
		}, {
			name: "unknown key", before: `printf 'debug: true\nno-such-key: 1\n' >/etc/dormouse/config.yaml`,
			args: []string{"server"}, says: `/etc/dormouse/config\.yaml.*line 2.*no-such-key.*--help`,
		}, {
			name: "value in a file", before: `printf 'https-listen-port: 66000\n' >/etc/dormouse/config.yaml`,
			args: []string{"server"}, says: `/etc/dormouse/config\.yaml.*line 1.*https-listen-port.*66000`,
		}, {
			name: "data directory is a file", before: `touch /var/lib/file`, after: `rm /var/lib/file`,
			args: []string{"server", "--data-dir=/var/lib/file"}, says: `data-dir.*/var/lib/file.*not a directory`,
		}, {
			name:   "data directory on a read-only file system",
			before: `mkdir /var/lib/ro && mount --bind /var/lib/ro /var/lib/ro && mount -o remount,ro,bind /var/lib/ro`,
			after:  `umount /var/lib/ro && rmdir /var/lib/ro`,
			args:   []string{"server", "--data-dir=/var/lib/ro/dormouse"}, says: `data-dir.*/var/lib/ro.*read-only`,
		}, {
			name:   "data directory of another format",
			before: `mkdir -p /var/lib/old/server && printf 'format 99\nversion v9.9.9+dormouse1\n' >/var/lib/old/server/version`,
			after:  `rm -r /var/lib/old`,
			args:   []string{"server", "--data-dir=/var/lib/old"}, says: `/var/lib/old.*"99".*(version|backup)`,
		}, {
			name:   "data directory of a later version",
			before: `mkdir -p /var/lib/old/server && printf 'format 1\nversion v9.9.9+dormouse1\n' >/var/lib/old/server/version`,
			after:  `rm -r /var/lib/old`,
			args:   []string{"server", "--data-dir=/var/lib/old"}, says: `/var/lib/old.*v9\.9\.9.*(version|backup)`,
		}, {
			name:   "data directory without a version",
			before: `mkdir -p /var/lib/old/server/db && touch /var/lib/old/server/db/state.db`,
			after:  `rm -r /var/lib/old`,
			args:   []string{"server", "--data-dir=/var/lib/old"}, says: `/var/lib/old.*version.*(data-dir|backup)`,
		},
		{name: "not root", args: nil, says: `root`},
		{name: "no nft", args: nil, says: `nft.*nftables`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.sh("mkdir -p /etc/dormouse; " + c.before)
			defer m.sh("rm -rf /etc/dormouse; " + c.after)
			var line string
			switch c.name {
			case "not root":
				line = m.refusal("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", m.binary, "server")
			case "no nft":
				line = m.refusal("env", "PATH=/nowhere", m.binary, "server")
			default:
				line = m.refusal("env", append(append(c.env, m.binary), c.args...)...)
			}
			if !regexp.MustCompile(c.says).MatchString(line) {
				t.Errorf("it says %q, want %s", line, c.says)
			}
			t.Log(line)
		})
	}
}

// TestPortTaken: a port that somebody else listens on is named.
func TestPortTaken(t *testing.T) {
	m := newMachine(t)
	for port, args := range map[string][]string{
		"6443":  {"server"},
		"10250": {"server"},
		"7443":  {"server", "--disable-agent", "--https-listen-port=7443"},
	} {
		t.Run(port, func(t *testing.T) {
			m.t = t
			listener := m.Command("/bin/busybox", "nc", "-l", "-p", port)
			listener.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := listener.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = syscall.Kill(-listener.Process.Pid, syscall.SIGKILL)
				_ = listener.Wait()
			}()
			cluster.Eventually(t, "the listener", func(ctx context.Context) error {
				_, err := m.Exec(ctx, "sh", "-c", "ss -Hltn | grep -q ':"+port+" '")
				return err
			})
			if line := m.refusal(m.binary, args...); !regexp.MustCompile(`:?` + port + `.*(in use|not free|listen)`).MatchString(line) {
				t.Errorf("it says %q", line)
			}
		})
	}
}

// TestDamagedProgram: a program whose packed files are damaged or cut off says
// so, before it has written anything.
func TestDamagedProgram(t *testing.T) {
	m := newMachine(t)
	whole, err := os.ReadFile(*binaryFlag)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := packed(t, whole)
	for _, c := range []struct {
		name  string
		spoil func([]byte) []byte
	}{
		{"a byte of a file", func(b []byte) []byte { b[first+1000] ^= 1; return b }},
		{"a byte of the index", func(b []byte) []byte { b[len(b)-100] ^= 1; return b }},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			dir := t.TempDir()
			program := filepath.Join(dir, "dormouse")
			if err := os.WriteFile(program, c.spoil(bytes.Clone(whole)), 0o755); err != nil {
				t.Fatal(err)
			}
			line := m.refusal(program, "server", "--disable-agent")
			if !regexp.MustCompile(`damaged; install it again`).MatchString(line) {
				t.Errorf("it says %q", line)
			}
		})
	}
}

// TestDamagedModule: a file of controllers that is damaged, of another version
// or not there is named, and what else would do.
func TestDamagedModule(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	whole, err := os.ReadFile(*binaryFlag)
	if err != nil {
		t.Fatal(err)
	}
	// The unpacked layout: the program alone, its files beside it.
	archive, err := payload.Open(*binaryFlag)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	unpacked, err := archive.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := packed(t, whole)
	program := filepath.Join(unpacked, "dormouse")
	if err := os.WriteFile(program, whole[:first], 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(unpacked, payload.Controllers)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		spoil func([]byte) []byte // nil: no such file
		says  string
	}{
		{"cut off", func(b []byte) []byte { return b[:len(b)/2] }, `not a valid module file`},
		{"empty", func([]byte) []byte { return nil }, `not a valid module file`},
		{"something else", func([]byte) []byte { return bytes.Repeat([]byte("dormouse"), 1000) }, `not a valid module file`},
		{"without its middle", func(b []byte) []byte { return append(bytes.Clone(b[:len(b)/3]), b[len(b)/2:]...) }, `not a valid module file`},
		{"a byte of its head", func(b []byte) []byte { b = bytes.Clone(b); b[40] ^= 0xff; return b }, `not a valid module file`},
		{"a bit of its machine code", func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/3] ^= 1; return b }, `not a valid module file`},
		{"of another wasmtime", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"wasmtime":"v3`), []byte(`"wasmtime":"v2`), 1)
		}, `another version`},
		{"of another platform", func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"target":"`), []byte(`"target":"not-`), 1)
		}, `not a valid module file|another version`},
		{"missing", nil, `no such file`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			if err := os.Remove(file); err != nil && c.spoil != nil {
				t.Fatal(err)
			}
			if c.spoil != nil {
				if err := os.WriteFile(file, c.spoil(good), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			line := m.refusal(program, "server", "--disable-agent")
			if !regexp.MustCompile(`controllers\.cwasm.*(` + c.says + `).*(controller-mode=native|install)`).MatchString(line) {
				t.Errorf("it says %q, want %s", line, c.says)
			}
		})
	}
}

// packed returns where the files packed behind a program begin and end.
func packed(t *testing.T, program []byte) (first, end int64) {
	t.Helper()
	const trailer = 8 + 4 + 8 // offset and length of the index, magic
	tail := program[len(program)-trailer:]
	end = int64(binary.LittleEndian.Uint64(tail))
	var index struct {
		Files []struct{ Offset int64 }
	}
	if err := json.Unmarshal(program[end:len(program)-trailer], &index); err != nil || len(index.Files) == 0 {
		t.Fatalf("no files are packed into the program: %v", err)
	}
	first = end
	for _, f := range index.Files {
		first = min(first, f.Offset)
	}
	return first, end
}

// TestNoServer: the tools say that there is no server to talk to.
func TestNoServer(t *testing.T) {
	m := newMachine(t)
	for _, args := range [][]string{{"wasm", "list"}, {"wasm", "list", "-o", "yaml"}, {"wasm", "wake"}, {"wasm", "sleep"}} {
		t.Log(m.refusal(m.binary, args...))
	}
}

// TestDataDirInUse: a second server leaves the data directory of a running one alone.
func TestDataDirInUse(t *testing.T) {
	w := theNode(t)
	r := w.run(t, "", "server", "--disable-agent", "--https-listen-port=7443", "--write-kubeconfig=/run/second.yaml")
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(r.stderr), "\n"), func(line string) bool {
		return strings.Contains(line, "level=info")
	})
	if r.code != 1 || len(lines) != 1 || !strings.Contains(lines[0], "another server runs on "+node.DataDir) {
		t.Errorf("exit code %d: %q", r.code, r.stderr)
	}
	if out, err := w.Exec(t.Context(), "ls", "/run/second.yaml"); err == nil {
		t.Errorf("it has written %s", out)
	}
}
