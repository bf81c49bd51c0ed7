package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// load is a start with the given command line, environment and files; the first file is the main one.
func load(t *testing.T, args []string, env map[string]string, files ...string) (*Config, []string, error) {
	t.Helper()
	dir := t.TempDir()
	main := filepath.Join(dir, "config.yaml")
	for i, content := range files {
		name := main
		if i > 0 {
			name = filepath.Join(main+".d", fmt.Sprintf("%02d.yaml", i))
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := Default()
	c.ConfigFile = main
	fs := c.Flags()
	command := pflag.NewFlagSet("command", pflag.ContinueOnError) // as cobra does it
	command.AddFlagSet(fs)
	if err := command.Parse(args); err != nil {
		return c, nil, err
	}
	notes, err := c.Load(fs, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		err = fmt.Errorf("%s", strings.ReplaceAll(err.Error(), dir+"/", ""))
	}
	return c, notes, err
}

func TestDefaults(t *testing.T) {
	c, _, err := load(t, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.ClusterDNS.String() != "10.43.0.10" || c.HTTPSListenPort != 6443 || c.WasmIdleTimeout != 2*time.Second ||
		c.WasmMemoryBudget != 64<<20 || c.WriteKubeconfigMode != 0o600 || c.ControllerMode != ModeWasm || c.DisableAgent {
		t.Errorf("got %+v", c)
	}
	usage := c.Flags().FlagUsages()
	for _, want := range []string{"(default 64MiB)", "(default 0600)", "(default 10.42.0.0/16)", "(default 2s)"} {
		if !strings.Contains(usage, want) {
			t.Errorf("help does not say %s:\n%s", want, usage)
		}
	}
}

func TestStrongerSourcesWin(t *testing.T) {
	file := "cluster-domain: file.example\nnode-name: file\ntls-san: [a.example, b.example]\nkubelet-arg:\n- v=2\nwrite-kubeconfig-mode: 0644\ndebug: true\nhttps-listen-port: 7443\n"
	env := map[string]string{"DORMOUSE_NODE_NAME": "env", "DORMOUSE_TLS_SAN": "c.example,d.example", "DORMOUSE_HTTPS_LISTEN_PORT": "8443"}
	c, _, err := load(t, []string{"--https-listen-port=9443", "--kubelet-arg", "a=b,c", "--kubelet-arg=d=e"}, env, file)
	if err != nil {
		t.Fatal(err)
	}
	if c.ClusterDomain != "file.example" || c.NodeName != "env" || c.HTTPSListenPort != 9443 || !c.Debug || c.WriteKubeconfigMode != 0o644 {
		t.Errorf("got %+v", c)
	}
	if !slices.Equal(c.TLSSAN, []string{"c.example", "d.example"}) || !slices.Equal(c.KubeletArg, []string{"a=b,c", "d=e"}) {
		t.Errorf("got %q and %q", c.TLSSAN, c.KubeletArg)
	}
}

func TestFilesInOrder(t *testing.T) {
	c, _, err := load(t, nil, nil,
		"tls-san: [a]\nkubelet-arg: [x=1]\nnode-name: one\n",
		"tls-san+: b\nkubelet-arg: [y=2]\n",
		"# nothing but a comment\n", "",
		"tls-san+: [c, d]\nnode-name: two\n")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.TLSSAN, []string{"a", "b", "c", "d"}) || !slices.Equal(c.KubeletArg, []string{"y=2"}) || c.NodeName != "two" {
		t.Errorf("got %q, %q, %q", c.TLSSAN, c.KubeletArg, c.NodeName)
	}
}

func TestEnvironmentOfK3s(t *testing.T) {
	c, notes, err := load(t, nil, map[string]string{"K3S_TOKEN": "secret", "K3S_NODE_NAME": "old", "DORMOUSE_NODE_NAME": "new"})
	if err != nil || c.Token != "secret" || c.NodeName != "new" || len(notes) != 1 || !strings.Contains(notes[0], "DORMOUSE_TOKEN") || strings.Contains(notes[0], "secret") {
		t.Errorf("got %+v, %q, %v", c, notes, err)
	}
}

func TestWhatIsWrongIsSaidInOneLine(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		env   map[string]string
		files []string
		want  string
	}{
		"unknown key":         {files: []string{"debug: true\nnonsense: 1\n"}, want: "config.yaml: line 2: nonsense: no such key"},
		"key of a drop-in":    {files: []string{"", "nonsense: 1"}, want: "config.yaml.d/01.yaml: line 1: nonsense: no such key"},
		"config as a key":     {files: []string{"config: /x"}, want: "config: no such key"},
		"help as a key":       {files: []string{"help: true"}, want: "help: no such key"},
		"bad value":           {files: []string{"cluster-cidr: ten"}, want: `config.yaml: line 1: cluster-cidr: "ten": not a range of addresses, such as 10.42.0.0/16`},
		"bad value in list":   {files: []string{"tls-san: ['']"}, want: "an entry is empty"},
		"list for one value":  {files: []string{"node-name: [a, b]"}, want: "node-name: it holds one value, not a list"},
		"plus for one value":  {files: []string{"node-name+: a"}, want: "so node-name+ means nothing"},
		"map for a value":     {files: []string{"node-name: {a: b}"}, want: "line 1: node-name: a value or a list of values is needed"},
		"no value":            {files: []string{"node-name:"}, want: "a value or a list of values is needed"},
		"twice":               {files: []string{"debug: true\ndebug: false"}, want: "line 2: debug: given twice, first on line 1"},
		"no YAML":             {files: []string{"{"}, want: "config.yaml: line 1:"},
		"no mapping":          {files: []string{"- a"}, want: "not keys and values"},
		"two documents":       {files: []string{"debug: true\n---\ndebug: false"}, want: "more than one document"},
		"environment":         {env: map[string]string{"DORMOUSE_CLUSTER_DNS": "x"}, want: `DORMOUSE_CLUSTER_DNS="x" in the environment: not an IP address`},
		"empty environment":   {env: map[string]string{"DORMOUSE_DATA_DIR": ""}, want: "it is empty"},
		"missing file":        {args: []string{"--config=/nonexistent/c.yaml"}, want: "/nonexistent/c.yaml: no such file"},
		"missing file in env": {env: map[string]string{"DORMOUSE_CONFIG": "/nonexistent/c.yaml"}, want: "/nonexistent/c.yaml: no such file"},
		"flag":                {args: []string{"--wasm-idle-timeout=soon"}, want: `invalid argument "soon" for "--wasm-idle-timeout" flag: not a duration, such as 2s`},
		"unknown flag":        {args: []string{"--nonsense"}, want: "unknown flag: --nonsense"},
		"host bits":           {args: []string{"--service-cidr=10.43.1.1/16"}, want: "which would be 10.43.0.0/16"},
		"tiny range":          {args: []string{"--cluster-cidr=10.42.0.0/28"}, want: "fewer than 256 addresses"},
		"mode":                {args: []string{"--write-kubeconfig-mode=rw"}, want: "not a file mode in octal"},
		"port":                {args: []string{"--https-listen-port=0"}, want: "from 1 to 65535"},
		"size":                {args: []string{"--wasm-memory-budget=lots"}, want: "such as 64MiB"},
		"mode of controllers": {args: []string{"--controller-mode=both"}, want: "neither wasm nor native"},
		"node name":           {args: []string{"--node-name=My_Node"}, want: "not a node name"},
		"bool":                {args: []string{"--debug=maybe"}, want: "not true or false"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := load(t, tc.args, tc.env, tc.files...)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, tc.want)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "1024": 1024, "64MiB": 64 << 20, "64Mi": 64 << 20, "1GiB": 1 << 30, "5 MB": 5e6, "3K": 3000} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%s: got %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "-1", "1.5GiB", "64 mib", "MiB", "999999999999GiB", "1TiB"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%s: got %d", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "debug: true", "a: [b, c]\nd+: e\n", "a: &x b\nc: *x\n", "---\n---", "a: |\n  b\n", "? {a: b}\n: c", "\x00", "a: &a [*a]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parse(b)
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("an error of several lines: %q", err)
		}
		for _, e := range entries {
			if !e.list && len(e.values) != 1 {
				t.Errorf("%q: %+v", b, e)
			}
		}
		c := Default()
		fs := c.Flags()
		if err := apply(fs, "file", b, map[string]bool{}); err == nil && c.HTTPSListenPort < 1 {
			t.Errorf("%q was accepted: %+v", b, c)
		}
	})
}
