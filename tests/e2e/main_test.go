// Package e2e uses a whole node, with real containers, the way its users do. The
// tests share one node, which the first that needs it starts; each works in
// Kubernetes namespaces of its own, so that each can also run alone.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/node"
)

var (
	binaryFlag = flag.String("binary", "../../bin/dormouse", "the dormouse executable")
	imagesFlag = flag.String("images", "../../build/images", "directory with the image archives")
)

// startPatience bounds the start of the node.
const startPatience = 5 * time.Minute

// Images that packaging/images builds.
const (
	web1    = "docker.io/dormouse/web:v1"
	web2    = "docker.io/dormouse/web:v2"
	busybox = "docker.io/dormouse/busybox:1"
)

// nodeName is the host name inside the node's namespaces.
const nodeName = "fog-7"

// world is the running node and the cluster on it.
type world struct {
	*node.Node
	*cluster.Cluster
}

// The one node of this process, once a test has needed it.
var (
	mu      sync.Mutex
	mode    = "wasm" // --controller-mode of the node
	started *world
	failure error
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := stopNode(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// stopNode ends the node, if there is one; theNode starts another.
func stopNode() error {
	mu.Lock()
	defer mu.Unlock()
	w := started
	started, failure = nil, nil
	if w == nil {
		return nil
	}
	return errors.Join(w.StopServer(), w.Close())
}

// theNode returns the node, starting it if need be. When the test fails, the end
// of the server's log is shown.
func theNode(t *testing.T) *world {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if started == nil && failure == nil {
		started, failure = startNode(t)
	}
	if failure != nil {
		t.Fatal(failure)
	}
	log := started.LogFile()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", tail(log))
		}
	})
	return started
}

// nativeController runs natively in mode wasm too.
const nativeController = "ttl-controller"

// startNode starts the node with good and broken files; see TestBrokenFiles.
func startNode(t *testing.T) (*world, error) {
	broken, err := brokenArchives(t.TempDir())
	if err != nil {
		return nil, err
	}
	archives := append(broken, filepath.Join(*imagesFlag, "web.tar.zst"), filepath.Join(*imagesFlag, "web-v2.tar.zst"))
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	n, err := node.Start(ctx, node.Config{
		Binary: *binaryFlag, Images: archives, Name: nodeName, Args: []string{"--controller-mode=" + mode, "--native-controllers=" + nativeController},
	})
	if err != nil {
		return nil, err
	}
	w := &world{Node: n}
	err = w.finish(ctx)
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return w, nil
}

// finish connects to the node and gives it what may also come later.
func (w *world) finish(ctx context.Context) error {
	kubeconfig, err := w.Exec(ctx, "cat", node.Kubeconfig)
	if err != nil {
		return err
	}
	if w.Cluster, err = cluster.Connect([]byte(kubeconfig), net.JoinHostPort(w.IP.String(), "6443")); err != nil {
		return err
	}
	if err := os.WriteFile(w.file("agent", "pod-manifests", "broken.yaml"), []byte("kind: Pod\nmetadata: [\n"), 0o600); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(*imagesFlag, "busybox.tar"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.file("agent", "images", "busybox.tar"), b, 0o600); err != nil {
		return err
	}
	return cluster.Await(ctx, func(context.Context) error {
		log, err := os.ReadFile(w.LogFile())
		if err == nil && !bytes.Contains(log, []byte(busybox)) {
			err = errors.New("an image archive that came while the node ran is not imported")
		}
		return err
	})
}

// file names a file of the node's data directory.
func (w *world) file(elem ...string) string {
	return filepath.Join(append([]string{w.Dir, "lib", "dormouse"}, elem...)...)
}

// restart starts the server again after stop has ended it.
func (w *world) restart(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startPatience)
	defer cancel()
	if err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
}

func tail(file string) string {
	const most = 16 << 10
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
		b = b[bytes.IndexByte(b, '\n')+1:]
	}
	return string(b)
}

// namespace makes a namespace for the test, in which pods can be made. A second
// one needs a further name.
func (w *world) namespace(t *testing.T, further ...string) string {
	t.Helper()
	name := strings.ToLower(strings.Join(append(strings.Split(t.Name(), "/"), further...), "-"))
	if _, err := w.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now := int64(0)
		ctx := context.Background()
		err := errors.Join(
			w.CoreV1().Pods(name).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}),
			w.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}))
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	cluster.Eventually(t, "the namespace does not get its service account", func(ctx context.Context) error {
		_, err := w.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return name
}

// result is how a program ended.
type result struct {
	stdout, stderr string
	code           int
}

// command returns a command that runs dormouse inside the node.
func (w *world) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := filepath.Abs(*binaryFlag)
	if err != nil {
		t.Fatal(err)
	}
	return w.Command(path, args...)
}

// run runs dormouse inside the node to its end.
func (w *world) run(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return finished(t, w.command(t, args...), stdin)
}

// finished runs a command to its end.
func finished(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// kubectl runs the built-in kubectl and returns its output. It must succeed.
func (w *world) kubectl(t *testing.T, namespace string, args ...string) string {
	t.Helper()
	out, err := w.Kubectl(t.Context(), append([]string{"--namespace", namespace}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply creates what YAML describes.
func (w *world) apply(t *testing.T, namespace, yaml string) {
	t.Helper()
	if r := w.run(t, yaml, "kubectl", "--namespace", namespace, "apply", "-f", "-"); r.code != 0 {
		t.Fatalf("kubectl apply: exit code %d: %s", r.code, r.stderr)
	}
}

// settled waits until a namespace is as its Deployments and Services want it.
func (w *world) settled(t *testing.T, namespace string) {
	t.Helper()
	cluster.Eventually(t, "the namespace does not settle", func(ctx context.Context) error {
		return w.Settled(ctx, namespace)
	})
}

// pods lists the pods of a namespace.
func (w *world) pods(t *testing.T, namespace string) []corev1.Pod {
	t.Helper()
	pods, err := w.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

// fetch gets a page from inside the node, with a connection of its own.
func (w *world) fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DialContext: w.Dial, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(body)), err
}

// sleeper makes a pod that does nothing and ends when it is told to, and waits until it runs.
func (w *world) sleeper(t *testing.T, namespace, name string, change ...func(*corev1.PodSpec)) *corev1.Pod {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"sleeper": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "sleep", Image: busybox,
			Command: []string{"sh", "-c", "trap 'exit 0' TERM; echo asleep; while :; do sleep 3600 & wait $!; done"},
		}}},
	}
	for _, f := range change {
		f(&p.Spec)
	}
	if _, err := w.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, "pod "+name+" does not run", func(ctx context.Context) error {
		var err error
		if p, err = w.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !cluster.PodReady(p) {
			return fmt.Errorf("it is %s: %+v", p.Status.Phase, p.Status.ContainerStatuses)
		}
		return nil
	})
	return p
}

// gone returns nil for the error of something that does not exist.
func gone(err error) error {
	if apierrors.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		return errors.New("it is still there")
	}
	return err
}
