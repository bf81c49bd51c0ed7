// Package packaging tests what is shipped around the binary: install.sh and the scripts it writes, under every shell
// found, in a throwaway root with recorded calls of systemctl; the service files; the image.
package packaging

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// shimEnv makes the test binary play a containerd shim with one container: see TestKillall.
const shimEnv = "PACKAGING_TEST_SHIM"

func TestMain(m *testing.M) {
	if os.Getenv(shimEnv) != "" {
		child := exec.Command("sleep", "300")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			panic(err)
		}
		fmt.Println("started")
		_ = child.Wait()
		return
	}
	os.Exit(m.Run())
}

// shells returns the command lines of the shells on this machine that install.sh has to work under.
func shells(t *testing.T) map[string][]string {
	t.Helper()
	found, paths := map[string][]string{}, map[string]bool{}
	for _, command := range [][]string{{"dash"}, {"mksh"}, {"busybox", "ash"}, {"bash", "--posix"}, {"sh"}} {
		path, err := exec.LookPath(command[0])
		if err != nil {
			t.Logf("not tested: %v", err)
			continue
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			t.Fatal(err)
		}
		if !paths[path] { // sh is one of the others
			found[command[0]], paths[path] = command, true
		}
	}
	return found
}

// eachShell runs a test under each of them.
func eachShell(t *testing.T, test func(t *testing.T, m *machine)) {
	for name, shell := range shells(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newMachine(t, shell))
		})
	}
}

// machine is a throwaway root and a fake init system.
type machine struct {
	t     *testing.T
	shell []string
	dir   string // of everything here
	root  string
	env   map[string]string
}

const fakeSystemctl = `#!/bin/sh
echo "${0##*/} $*" >>"$FAKE/calls"
case $1 in
restart) touch "$FAKE/active" ;;
stop) rm -f "$FAKE/active" ;;
is-active) [ -f "$FAKE/active" ] ;;
esac
`

// fakeOpenRC plays rc-service and rc-update.
const fakeOpenRC = `#!/bin/sh
echo "${0##*/} $*" >>"$FAKE/calls"
case "$*" in
*restart) touch "$FAKE/active" ;;
*stop) rm -f "$FAKE/active" ;;
*status) [ -f "$FAKE/active" ] ;;
esac
`

// binary returns a program that knows its version and a few verbs.
func binary(version string, verbs ...string) string {
	return fmt.Sprintf(`#!/bin/sh
case $1 in
--version) echo "dormouse version %s" ;;
%s) ;;
*) exit 1 ;;
esac
`, version, strings.Join(append(verbs, "kubectl"), " | "))
}

func newMachine(t *testing.T, shell []string) *machine {
	m := &machine{t: t, shell: shell, dir: t.TempDir()}
	m.root = filepath.Join(m.dir, "root")
	for _, dir := range []string{"tmp", "root/usr/local/bin", "root/run/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(m.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("fake/systemctl", fakeSystemctl)
	m.write("fake/rc-service", fakeOpenRC)
	m.write("fake/rc-update", fakeOpenRC)
	m.write("fake/calls", "")
	m.write("root/usr/sbin/nft", "")
	m.write("dormouse", binary("v1"))
	m.env = map[string]string{
		"PATH":                        filepath.Join(m.dir, "fake") + ":" + os.Getenv("PATH"),
		"TMPDIR":                      filepath.Join(m.dir, "tmp"),
		"FAKE":                        filepath.Join(m.dir, "fake"),
		"INSTALL_DORMOUSE_ROOT":       m.root,
		"INSTALL_DORMOUSE_SKIP_START": "false",
		"INSTALL_DORMOUSE_BINARY":     filepath.Join(m.dir, "dormouse"),
	}
	return m
}

// openRC makes the machine one with OpenRC.
func (m *machine) openRC() {
	if err := os.RemoveAll(filepath.Join(m.root, "run/systemd")); err != nil {
		m.t.Fatal(err)
	}
	m.write("root/sbin/openrc-run", "")
}

// write creates an executable file below m.dir.
func (m *machine) write(name, content string) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	// A new file each time: the old one may be executing.
	if err := os.RemoveAll(path); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		m.t.Fatal(err)
	}
}

// read returns a file below the root.
func (m *machine) read(name string) string {
	m.t.Helper()
	return readFile(m.t, filepath.Join(m.root, name))
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func (m *machine) exists(name string) bool {
	_, err := os.Lstat(filepath.Join(m.root, name))
	return err == nil
}

// command prepares a run of a script, which stands in a file or comes as standard input.
func (m *machine) command(script string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	m.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, m.shell[0], append(slices.Concat(m.shell[1:], []string{script}), args...)...)
	cmd.Dir = m.dir
	for name, value := range m.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// run runs a script, which must succeed, and returns what it printed.
func (m *machine) run(script string, args ...string) string {
	m.t.Helper()
	out, err := m.command(script, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %q: %v\n%s", script, args, err, out)
	}
	if left, err := os.ReadDir(filepath.Join(m.dir, "tmp")); err != nil || len(left) > 0 {
		m.t.Fatalf("%s left %v in the temporary directory (%v)", script, left, err)
	}
	return string(out)
}

func (m *machine) install(args ...string) string {
	m.t.Helper()
	return m.run(installer(m.t), args...)
}

// installer returns the path of install.sh.
func installer(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../install.sh")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// calls returns the recorded calls since the last time.
func (m *machine) calls() []string {
	m.t.Helper()
	content := readFile(m.t, filepath.Join(m.dir, "fake/calls"))
	m.write("fake/calls", "")
	return strings.Split(strings.TrimSpace(strings.ReplaceAll(content, m.root, "ROOT")), "\n")
}

// tree lists every file of the root with mode and content.
func (m *machine) tree() map[string]string {
	m.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(m.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		var content []byte
		if info.Mode().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		files[strings.TrimPrefix(path, m.root)] = fmt.Sprintf("%v %s", info.Mode(), content)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return files
}

func wantEqual(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func wantContains(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("no %q in:\n%s", part, text)
	}
}

func TestInstall(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.install()
		wantEqual(t, "calls", m.calls(), []string{
			"systemctl daemon-reload", "systemctl --root=ROOT enable dormouse", "systemctl restart dormouse"})
		if m.read("etc/systemd/system/dormouse.service") != readFile(t, "systemd/dormouse.service") {
			t.Error("the unit of install.sh is not the one in packaging/systemd")
		}
		for name, mode := range map[string]fs.FileMode{
			"usr/local/bin/dormouse":                  0o755,
			"usr/local/bin/dormouse-killall.sh":       0o755,
			"usr/local/bin/dormouse-uninstall.sh":     0o755,
			"etc/systemd/system/dormouse.service":     0o644,
			"etc/systemd/system/dormouse.service.env": 0o600,
		} {
			info, err := os.Stat(filepath.Join(m.root, name))
			if err != nil {
				t.Error(err)
			} else if info.Mode().Perm() != mode {
				t.Errorf("%s has mode %o, want %o", name, info.Mode().Perm(), mode)
			}
		}
		if to, err := os.Readlink(filepath.Join(m.root, "usr/local/bin/kubectl")); to != "dormouse" {
			t.Errorf("kubectl is no symlink to dormouse: %q, %v", to, err)
		}
		if m.exists("usr/local/bin/crictl") {
			t.Error("crictl is linked although the binary does not know it")
		}
	})
}

func TestInstallOpenRC(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.openRC()
		m.install()
		wantEqual(t, "calls", m.calls(), []string{"rc-update add dormouse default", "rc-service dormouse restart"})
		if m.read("etc/init.d/dormouse") != readFile(t, "openrc/dormouse") {
			t.Error("the service of install.sh is not the one in packaging/openrc")
		}
		wantContains(t, m.install(), "No change detected")

		m.install("--tls-san=it's here", "--node-name", "a$b\"c")
		m.write("args.sh", `command_args=; while read -r line; do case $line in command_args=*) eval "$line" ;; esac; done <"$1"
eval "set -- $command_args"; printf '<%s>' "$@"`)
		got := m.run(filepath.Join(m.dir, "args.sh"), filepath.Join(m.root, "etc/init.d/dormouse"))
		if want := `<server><--tls-san=it's here><--node-name><a$b"c>`; got != want {
			t.Errorf("OpenRC starts it with %s, want %s", got, want)
		}

		m.calls()
		m.run(filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh"))
		wantEqual(t, "calls", m.calls(), []string{"rc-service --ifstarted dormouse stop", "rc-update delete dormouse default"})
		if m.exists("etc/init.d/dormouse") || m.exists("etc/dormouse") {
			t.Error("service or configuration is left")
		}
	})
}

// TestInstallAgain: the service restarts if and only if binary, unit or environment changed.
func TestInstallAgain(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		restarts := func(what string, want bool, out string) {
			t.Helper()
			if got := slices.Contains(m.calls(), "systemctl restart dormouse"); got != want {
				t.Errorf("%s: restarted is %v, want %v\n%s", what, got, want, out)
			}
		}
		restarts("first", true, m.install())

		before := m.tree()
		out := m.install()
		restarts("same again", false, out)
		wantContains(t, out, "No change detected")
		if !maps.Equal(before, m.tree()) {
			t.Error("files changed although nothing was to change")
		}

		m.write("dormouse", binary("v2"))
		restarts("other binary", true, m.install())
		delete(m.env, "INSTALL_DORMOUSE_BINARY")
		m.env["INSTALL_DORMOUSE_SKIP_DOWNLOAD"] = "true"
		restarts("binary in place", false, m.install())
		m.write("root/usr/local/bin/dormouse", binary("v3"))
		restarts("other binary put in place", true, m.install())
		restarts("other flag", true, m.install("--debug"))
		m.env["DORMOUSE_TOKEN"] = "secret"
		restarts("other environment", true, m.install("--debug"))
		restarts("same again", false, m.install("--debug"))
		m.env["INSTALL_DORMOUSE_FORCE_RESTART"] = "true"
		restarts("forced", true, m.install("--debug"))
		delete(m.env, "INSTALL_DORMOUSE_FORCE_RESTART")
		if err := os.Remove(filepath.Join(m.dir, "fake/active")); err != nil {
			t.Fatal(err)
		}
		restarts("stopped meanwhile", true, m.install("--debug"))
	})
}

// TestDryRun: it lists exactly the files that the real run then writes, and writes none.
func TestDryRun(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		lines := func(out, mark string) (files []string) {
			for line := range strings.Lines(out) {
				if _, file, ok := strings.Cut(line, mark); ok {
					files = append(files, strings.TrimSpace(file))
				}
			}
			return files
		}
		before := m.tree()
		out := m.install("--dry-run", "server", "--debug")
		if !maps.Equal(before, m.tree()) {
			t.Error("a dry run changed files")
		}
		wantEqual(t, "calls", m.calls(), []string{""})
		wantContains(t, out, "would run systemctl restart dormouse")
		real := m.install("server", "--debug")
		wantEqual(t, "files of the dry run", lines(out, "would write "), lines(real, "Writing "))
		if len(lines(real, "Writing ")) != 5 {
			t.Errorf("not five files written:\n%s", real)
		}
		m.calls()
		if out := m.install("server", "--debug", "--dry-run"); len(lines(out, "would write ")) > 0 {
			t.Errorf("a dry run would write although nothing changed:\n%s", out)
		}
	})
}

func TestFlags(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		for _, test := range []struct {
			exec string
			args []string
			want string
		}{
			{"", nil, ``},
			{"", []string{"--debug"}, ` --debug`},
			{"server --debug", []string{"--node-name", "a"}, ` --debug --node-name a`},
			{`--kube-apiserver-arg='a=b c' "--x=\y"`, nil, ` "--kube-apiserver-arg=a=b c" "--x=\\y"`},
			{"", []string{"--a=100%", "--b=$HOME", "--c=`id`", `--d="`, "", "--e=*"}, ` "--a=100%%" "--b=$$HOME" "--c=` + "`id`" + `" "--d=\"" "" "--e=*"`},
			{"$(touch ran) ; touch ran", nil, ""},
		} {
			m.env["INSTALL_DORMOUSE_EXEC"] = test.exec
			if strings.HasPrefix(test.exec, "$") {
				if out, err := m.command(installer(t), test.args...).CombinedOutput(); err == nil {
					t.Errorf("%q was accepted:\n%s", test.exec, out)
				}
				continue
			}
			m.install(test.args...)
			wantContains(t, m.read("etc/systemd/system/dormouse.service"), "\nExecStart=/usr/local/bin/dormouse server"+test.want+"\n")
		}
		if _, err := os.Stat(filepath.Join(m.dir, "ran")); err == nil {
			t.Error("INSTALL_DORMOUSE_EXEC was evaluated")
		}
	})
}

// TestEnvironment: what the service reads is what was exported, and nothing else.
func TestEnvironment(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		want := map[string]string{
			"DORMOUSE_TOKEN":     `a "b" $c \d ` + "`e` 'f' #g",
			"DORMOUSE_EMPTY":     "",
			"CONTAINERD_LOG":     "debug",
			"https_proxy":        "http://proxy:3128",
			"NO_PROXY":           "10.0.0.0/8,*.local",
			"DORMOUSE_NODE_NAME": "ünï",
		}
		maps.Copy(m.env, want)
		m.env["OTHER"] = "x\nDORMOUSE_FALSE=1"
		m.install()
		file := m.read("etc/systemd/system/dormouse.service.env")
		if got := strings.Count(file, "\n"); got != len(want)+1 {
			t.Errorf("%d lines, want %d:\n%s", got, len(want)+1, file)
		}
		for name := range want {
			delete(m.env, name)
		}
		m.write("show.sh", `. "$1"; printf '%s' "$DORMOUSE_TOKEN|$DORMOUSE_EMPTY|$CONTAINERD_LOG|$https_proxy|$NO_PROXY|$DORMOUSE_NODE_NAME"`)
		got := m.run(filepath.Join(m.dir, "show.sh"), filepath.Join(m.root, "etc/systemd/system/dormouse.service.env"))
		var values []string
		for _, name := range []string{"DORMOUSE_TOKEN", "DORMOUSE_EMPTY", "CONTAINERD_LOG", "https_proxy", "NO_PROXY", "DORMOUSE_NODE_NAME"} {
			values = append(values, want[name])
		}
		if got != strings.Join(values, "|") {
			t.Errorf("a shell reads %q, want %q", got, values)
		}
	})
}

func TestSymlinks(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.write("dormouse", binary("v1", "crictl", "ctr"))
		m.write("root/usr/bin/crictl", "another's")
		m.write("root/usr/local/bin/ctr", "another's")
		link := func(name string) string {
			to, _ := os.Readlink(filepath.Join(m.root, "usr/local/bin", name))
			return to
		}
		m.env["INSTALL_DORMOUSE_SYMLINK"] = "skip"
		m.install()
		wantEqual(t, "skip", []string{link("kubectl"), link("crictl"), link("ctr")}, []string{"", "", ""})
		delete(m.env, "INSTALL_DORMOUSE_SYMLINK")
		wantContains(t, m.install(), "No symlink "+m.root+"/usr/local/bin/crictl: there is /usr/bin/crictl already")
		wantEqual(t, "free names", []string{link("kubectl"), link("crictl"), link("ctr")}, []string{"dormouse", "", ""})
		m.run(filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh"))
		if m.exists("usr/local/bin/kubectl") || !m.exists("usr/local/bin/ctr") {
			t.Error("uninstalling removed what was not ours, or left what was")
		}
		m.env["INSTALL_DORMOUSE_SYMLINK"] = "force"
		m.install()
		wantEqual(t, "force", []string{link("kubectl"), link("crictl"), link("ctr")}, []string{"dormouse", "dormouse", "dormouse"})
	})
}

// TestImageRoot: into a mounted system nothing is started, and nothing of this machine's services is touched.
func TestImageRoot(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		delete(m.env, "INSTALL_DORMOUSE_SKIP_START")
		m.install()
		wantEqual(t, "systemd", m.calls(), []string{"systemctl --root=ROOT enable dormouse"})
		m.run(filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh"))
		wantEqual(t, "systemd, uninstall", m.calls(), []string{"systemctl --root=ROOT disable dormouse"})
		m.openRC()
		m.install()
		if to, err := os.Readlink(filepath.Join(m.root, "etc/runlevels/default/dormouse")); to != "/etc/init.d/dormouse" {
			t.Errorf("not in the default runlevel: %q, %v", to, err)
		}
		m.run(filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh"))
		if m.exists("etc/runlevels/default/dormouse") {
			t.Error("still in the default runlevel")
		}
		wantEqual(t, "OpenRC", m.calls(), []string{""})
	})
}

func TestDirectories(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.env["INSTALL_DORMOUSE_BIN_DIR"] = "/opt/dormouse/bin"
		m.env["INSTALL_DORMOUSE_SYSTEMD_DIR"] = "/usr/lib/systemd/system"
		m.env["INSTALL_DORMOUSE_NAME"] = "edge"
		m.env["INSTALL_DORMOUSE_TYPE"] = "exec"
		m.install()
		unit := m.read("usr/lib/systemd/system/dormouse-edge.service")
		wantContains(t, unit, "\nExecStart=/opt/dormouse/bin/dormouse server\n")
		wantContains(t, unit, "\nType=exec\n")
		wantContains(t, unit, "\nEnvironmentFile=-/usr/lib/systemd/system/dormouse-edge.service.env\n")
		if !m.exists("opt/dormouse/bin/dormouse-edge-uninstall.sh") {
			t.Error("no uninstall script")
		}

		m.env["INSTALL_DORMOUSE_BIN_DIR_READ_ONLY"] = "true"
		delete(m.env, "INSTALL_DORMOUSE_BINARY")
		m.env["INSTALL_DORMOUSE_NAME"] = "other"
		before, err := os.ReadDir(filepath.Join(m.root, "opt/dormouse/bin"))
		if err != nil {
			t.Fatal(err)
		}
		m.install()
		after, err := os.ReadDir(filepath.Join(m.root, "opt/dormouse/bin"))
		if err != nil || len(after) != len(before) {
			t.Errorf("the read-only directory was written to: %v, %v", after, err)
		}
	})
}

// TestBadInput: one line that says which and what would do, exit code 1, nothing changed.
func TestBadInput(t *testing.T) {
	tests := []struct {
		name, value string
		args        []string
		says        string
	}{
		{"INSTALL_DORMOUSE_SKIP_DOWLOAD", "true", nil, "INSTALL_DORMOUSE_SKIP_DOWLOAD is not known"},
		{"INSTALL_DORMOUSE_SKIP_START", "yes", nil, `"yes" is neither true nor false`},
		{"INSTALL_DORMOUSE_TYPE", "forking", nil, "none of notify, exec, simple"},
		{"INSTALL_DORMOUSE_SYMLINK", "all", nil, "neither skip nor force"},
		{"INSTALL_DORMOUSE_NAME", "a/b", nil, "other characters"},
		{"INSTALL_DORMOUSE_ROOT", "nowhere", nil, "is not a directory"},
		{"INSTALL_DORMOUSE_BIN_DIR", "bin", nil, "not an absolute path"},
		{"INSTALL_DORMOUSE_BIN_DIR", "/", nil, "root directory"},
		{"INSTALL_DORMOUSE_SYSTEMD_DIR", "/a b", nil, "not an absolute path"},
		{"INSTALL_DORMOUSE_EXEC", "--tls-san 'a", nil, "quote is not closed"},
		{"INSTALL_DORMOUSE_EXEC", "serve", nil, `"serve" cannot be installed`},
		{"INSTALL_DORMOUSE_BINARY", "nowhere", nil, "there is no file nowhere"},
		{"INSTALL_DORMOUSE_BINARY", "broken", nil, "does not run on this machine"},
		{"INSTALL_DORMOUSE_BINARY", "", nil, "no binary to install"},
		{"INSTALL_DORMOUSE_SKIP_DOWNLOAD", "true", nil, "no executable"},
		{"INSTALL_DORMOUSE_URL", "http://example.invalid", nil, "does not begin with https://"},
		{"DORMOUSE_URL", "https://server:6443", nil, "not in this release"},
		{"DORMOUSE_TOKEN", "a\nb", nil, "line break"},
		{"DORMOUSE_DATA_DIR", "relative", nil, "not an absolute path"},
		{"", "", []string{"agent"}, "not in this release"},
		{"", "", []string{"--data-dir", "/a/../b"}, "not an absolute path"},
		{"", "", []string{"--data-dir=/"}, "not an absolute path"},
		{"", "", []string{"--a\nb"}, "line break"},
	}
	eachShell(t, func(t *testing.T, m *machine) {
		m.write("broken", "#!/bin/sh\nexit 1\n")
		before := m.tree()
		env := maps.Clone(m.env)
		for _, test := range tests {
			m.env = maps.Clone(env)
			if test.name != "" {
				m.env[test.name] = test.value
			}
			if test.name == "INSTALL_DORMOUSE_SKIP_DOWNLOAD" || test.name == "INSTALL_DORMOUSE_URL" {
				delete(m.env, "INSTALL_DORMOUSE_BINARY")
			}
			cmd := m.command(installer(t), test.args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err := cmd.Run()
			if cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("%s=%q %q: %v, want exit code 1", test.name, test.value, test.args, err)
			}
			if !strings.Contains(stderr.String(), test.says) || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("%s=%q %q: want one line with %q, got:\n%s", test.name, test.value, test.args, test.says, &stderr)
			}
		}
		if !maps.Equal(before, m.tree()) {
			t.Error("files changed")
		}
		wantEqual(t, "calls", m.calls(), []string{""})
		if left, err := os.ReadDir(filepath.Join(m.dir, "tmp")); err != nil || len(left) > 0 {
			t.Errorf("left in the temporary directory: %v (%v)", left, err)
		}
	})
}

// TestTruncated: `curl … | sh` with a connection that breaks anywhere runs nothing.
func TestTruncated(t *testing.T) {
	script := readFile(t, installer(t))
	eachShell(t, func(t *testing.T, m *machine) {
		var lengths []int
		for n := 1; n < len(script); n += len(script) / 60 {
			lengths = append(lengths, n)
		}
		for n := len(script) - 16; n < len(script)-1; n++ {
			lengths = append(lengths, n)
		}
		before := m.tree()
		for _, length := range lengths {
			cmd := m.command("-s", "-", "--debug")
			cmd.Stdin = strings.NewReader(script[:length])
			out, _ := cmd.CombinedOutput()
			if strings.Contains(string(out), "[INFO]") || !maps.Equal(before, m.tree()) {
				t.Fatalf("the first %d of %d bytes did something:\n%s", length, len(script), out)
			}
		}
		wantEqual(t, "calls", m.calls(), []string{""})
		cmd := m.command("-s", "-", "--debug")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("the whole script: %v\n%s", err, out)
		}
		wantContains(t, m.read("etc/systemd/system/dormouse.service"), "server --debug\n")
	})
}

func TestDownload(t *testing.T) {
	good := binary("v9")
	files := map[string]string{
		"/v9%2Bdormouse1/dormouse-" + runtime.GOARCH:  good,
		"/broken/dormouse-" + runtime.GOARCH:          good[:len(good)-1],
		"/nosum/dormouse-" + runtime.GOARCH:           good,
		"/nosum/sha256sum-" + runtime.GOARCH + ".txt": "",
	}
	sum := fmt.Sprintf("%x  dormouse-%s\n", sha256.Sum256([]byte(good)), runtime.GOARCH)
	files["/v9%2Bdormouse1/sha256sum-"+runtime.GOARCH+".txt"] = sum
	files["/broken/sha256sum-"+runtime.GOARCH+".txt"] = sum
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := files[r.URL.EscapedPath()]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, content)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	// The subtests run after this function has returned: they are in a group of their own to outlive the server.
	t.Run("group", func(t *testing.T) {
		eachShell(t, func(t *testing.T, m *machine) {
			delete(m.env, "INSTALL_DORMOUSE_BINARY")
			m.env["CURL_CA_BUNDLE"] = ca
			m.env["INSTALL_DORMOUSE_URL"] = server.URL
			before := m.tree()
			for version, says := range map[string]string{
				"v0": "cannot download", "broken": "does not have the SHA-256", "nosum": "has no line for"} {
				m.env["INSTALL_DORMOUSE_VERSION"] = version
				out, err := m.command(installer(t)).CombinedOutput()
				if err == nil {
					t.Errorf("%s was accepted", version)
				}
				wantContains(t, string(out), says)
			}
			m.env["INSTALL_DORMOUSE_VERSION"] = "v9+dormouse1"
			wantContains(t, m.install("--dry-run"), "would write "+m.root+"/usr/local/bin/dormouse\n")
			if !maps.Equal(before, m.tree()) {
				t.Error("files changed")
			}
			m.install()
			if m.read("usr/local/bin/dormouse") != good {
				t.Error("another binary is installed than was offered")
			}
			wantContains(t, m.install(), "No change detected")
		})
	})
}

func TestUninstall(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		before := m.tree()
		uninstall := filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh")
		m.install()
		for _, file := range []string{"server/token", "server/db/state.db", "agent/images/a.tar", "data/abc/dormouse-rt", "storage/pvc/.hidden"} {
			m.write("root/var/lib/dormouse/"+file, "x")
		}
		for _, file := range []string{"etc/dormouse/config.yaml", "run/dormouse/x", "var/lib/kubelet/pods/x/y", "var/log/pods/x/0.log", "var/log/containers/x.log"} {
			m.write("root/"+file, "x")
		}
		for _, file := range []string{"dormouse-x-eth0", "cni-loopback-x-lo"} {
			m.write("root/var/lib/cni/results/"+file, `{"kind":"cniCacheV1","netns":"/run/dormouse/containerd/state/netns/cni-x"}`)
		}
		foreign := "var/lib/cni/results/cni-loopback-y-lo"
		m.write("root/"+foreign, `{"kind":"cniCacheV1","netns":"/run/netns/cni-y"}`)
		m.calls()

		installed := m.tree()
		out, err := m.command(uninstall, "--prune").CombinedOutput()
		if err == nil || strings.Count(string(out), "\n") != 1 || !maps.Equal(installed, m.tree()) {
			t.Errorf("an unknown flag was not refused: %v\n%s", err, out)
		}

		m.run(uninstall)
		wantEqual(t, "calls", m.calls(), []string{"systemctl stop dormouse", "systemctl --root=ROOT disable dormouse",
			"systemctl reset-failed dormouse", "systemctl daemon-reload"})
		if !m.exists("var/lib/dormouse/storage/pvc/.hidden") {
			t.Fatal("local volumes are gone without --purge")
		}
		if !m.exists(foreign) {
			t.Error("what CNI remembers of others' pods is gone")
		}
		if err := os.RemoveAll(filepath.Join(m.root, "var/lib/cni")); err != nil {
			t.Fatal(err)
		}
		m.install()
		m.run(uninstall, "--purge")
		after := m.tree()
		for _, dir := range []string{"/etc", "/etc/systemd", "/etc/systemd/system", "/var", "/var/lib", "/var/log"} {
			delete(after, dir)
		}
		if !maps.Equal(before, after) {
			t.Errorf("left behind: %q", slices.Sorted(maps.Keys(after)))
		}
	})
}

// TestUninstallOneOfTwo: data and binary belong to all services.
func TestUninstallOneOfTwo(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.install()
		m.env["INSTALL_DORMOUSE_NAME"] = "edge"
		m.install()
		m.write("root/var/lib/dormouse/server/token", "x")
		m.calls()
		m.run(filepath.Join(m.root, "usr/local/bin/dormouse-edge-uninstall.sh"))
		wantEqual(t, "calls", m.calls()[:1], []string{"systemctl stop dormouse-edge"})
		if m.exists("etc/systemd/system/dormouse-edge.service") || !m.exists("etc/systemd/system/dormouse.service") ||
			!m.exists("usr/local/bin/dormouse") || !m.exists("var/lib/dormouse/server/token") {
			t.Errorf("wrong files left: %q", slices.Sorted(maps.Keys(m.tree())))
		}
	})
}

// TestUninstallDataDir: the directory of the flag, and that of config.yaml.
func TestUninstallDataDir(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		for name, setup := range map[string]func(dir string){
			"flag":   func(dir string) { m.install("--data-dir", dir) },
			"equals": func(dir string) { m.install("--data-dir=" + dir + "/") },
			"config": func(dir string) {
				m.write("root/etc/dormouse/config.yaml", "debug: true\ndata-dir: \""+dir+"\"\n")
				m.install()
			},
		} {
			m.write("root/srv/d/server/token", "x")
			m.write("root/srv/d/photos/cat", "x")
			setup("/srv/d")
			m.run(filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh"), "--purge")
			if m.exists("srv/d/server") || !m.exists("srv/d/photos/cat") {
				t.Errorf("%s: the wrong things are left: %q", name, slices.Sorted(maps.Keys(m.tree())))
			}
		}
	})
}

// TestUninstallMounts runs in a mount namespace of its own: what is mounted below the data directory survives even
// --purge, what pods have mounted is unmounted.
func TestUninstallMounts(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.install()
		m.write("disk/precious", "x")
		m.write("root/var/lib/dormouse/server/token", "x")
		for _, dir := range []string{"storage/a b/pvc", "agent/images", "agent/containerd/x/rootfs"} {
			m.write("root/var/lib/dormouse/"+dir+"/under", "x")
		}
		m.write("root/var/lib/kubelet/pods/p/volumes/under", "x")
		m.write("mounts.sh", `set -e
mount --make-rprivate /
for dir in "storage/a b/pvc" agent/images agent/containerd/x/rootfs; do mount --bind disk "root/var/lib/dormouse/$dir"; done
mount --bind disk root/var/lib/kubelet/pods/p/volumes
"$@"
grep -c "$PWD/root" /proc/self/mounts
`)
		inner := slices.Concat([]string{"--mount", "--propagation", "unchanged", "sh", filepath.Join(m.dir, "mounts.sh")},
			m.shell, []string{filepath.Join(m.root, "usr/local/bin/dormouse-uninstall.sh"), "--purge"})
		if os.Geteuid() != 0 {
			inner = slices.Insert(inner, 0, "--user", "--map-root-user")
		}
		cmd := m.command("")
		cmd.Path, cmd.Args = "/usr/bin/unshare", slices.Insert(inner, 0, "unshare")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !strings.HasSuffix(string(out), "\n2\n") {
			t.Errorf("not the two mounts of the user are left:\n%s", out)
		}
		if readFile(t, filepath.Join(m.dir, "disk/precious")) != "x" {
			t.Error("the disk was written to")
		}
		for name, want := range map[string]bool{
			"var/lib/dormouse/server":           false,
			"var/lib/dormouse/agent/containerd": false,
			"var/lib/kubelet":                   false,
			"var/lib/dormouse/agent/images":     true,
			"var/lib/dormouse/storage/a b/pvc":  true,
		} {
			if m.exists(name) != want {
				t.Errorf("%s: exists is %v, want %v", name, !want, want)
			}
		}
	})
}

// TestKillall: a shim, known by where it is executed from, and the container below it end; nothing else does.
func TestKillall(t *testing.T) {
	eachShell(t, func(t *testing.T, m *machine) {
		m.install()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		bystander := exec.Command("sleep", "300")
		if err := bystander.Start(); err != nil {
			t.Fatal(err)
		}
		shim := m.shim(self)
		var pipe io.ReadCloser
		if pipe, err = shim.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err := shim.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(pipe, make([]byte, len("started\n"))); err != nil {
			t.Fatal(err)
		}

		m.calls()
		m.run(filepath.Join(m.root, "usr/local/bin/dormouse-killall.sh"))
		wantEqual(t, "calls", m.calls(), []string{"systemctl stop dormouse"})
		// The end of the pipe: neither the shim nor its child, which has the same standard output, lives.
		if _, err := io.ReadAll(pipe); err != nil {
			t.Fatal(err)
		}
		_ = shim.Wait()
		if err := bystander.Process.Kill(); err != nil {
			t.Errorf("a process that is none of a pod was ended: %v", err)
		}
		_ = bystander.Wait()
		if !m.exists("usr/local/bin/dormouse") || !m.exists("etc/systemd/system/dormouse.service") {
			t.Error("killall removed files")
		}
	})
}

// shim copies the test binary to where the shim is unpacked.
func (m *machine) shim(self string) *exec.Cmd {
	m.t.Helper()
	file := filepath.Join(m.root, "var/lib/dormouse/data/0123/containerd-shim-runc-v2")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		m.t.Fatal(err)
	}
	// By another process: a child of a test beside this one could hold it open for writing, and then it
	// cannot be executed.
	if out, err := exec.Command("cp", self, file).CombinedOutput(); err != nil {
		m.t.Fatalf("copying the test program: %v: %s", err, out)
	}
	cmd := exec.Command(file)
	cmd.Env = append(os.Environ(), shimEnv+"=1")
	return cmd
}

// TestShellcheck: every script, those that install.sh writes included.
func TestShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Fatalf("the scripts are checked with shellcheck: install the package of that name (%v)", err)
	}
	m := newMachine(t, []string{"sh"})
	m.install("--data-dir", "/srv/d")
	bin := filepath.Join(m.root, "usr/local/bin")
	for _, args := range [][]string{
		{"--shell=sh", installer(t)},
		{"--shell=sh", filepath.Join(bin, "dormouse-killall.sh")},
		{"--shell=sh", filepath.Join(bin, "dormouse-uninstall.sh")},
		{"--shell=bash", "../.ci/run"},
		// OpenRC reads the variables, and the files are on the machine.
		{"--shell=sh", "--exclude=SC2034,SC1091", "openrc/dormouse"},
	} {
		if out, err := exec.Command("shellcheck", args...).CombinedOutput(); err != nil {
			t.Errorf("shellcheck %v: %v\n%s", args, err, out)
		}
	}
}
