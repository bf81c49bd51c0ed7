package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/dormouse-k8s/dormouse/server"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

func newWasmCommand() *cobra.Command {
	w := &wasmClient{}
	group := &cobra.Command{Use: "wasm", Short: "Show and control the controllers that sleep", Args: cobra.ArbitraryArgs, RunE: needsSubcommand}
	group.PersistentFlags().StringVar(&w.kubeconfig, "kubeconfig", "", "kubeconfig of an administrator (default: $KUBECONFIG, or the one the server on this machine writes)")

	var output string
	list := &cobra.Command{Use: "list", Short: "List the controllers and what they do", Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return w.list(cmd.Context(), cmd.OutOrStdout(), output) }}
	list.Flags().StringVarP(&output, "output", "o", "table", "table, wide or json")

	one := func(verb, method, path, short string) *cobra.Command {
		return &cobra.Command{Use: verb + " NAME", Short: short,
			Args: func(cmd *cobra.Command, args []string) error {
				if len(args) != 1 {
					return fmt.Errorf("one name of a controller is needed, as \"dormouse wasm list\" shows it")
				}
				return nil
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				body, err := w.request(cmd.Context(), method, "controllers/"+url.PathEscape(args[0])+path)
				if err != nil {
					return err
				}
				return indent(cmd.OutOrStdout(), body)
			}}
	}
	group.AddCommand(list,
		one("inspect", http.MethodGet, "", "Show all about one controller"),
		one("wake", http.MethodPost, "/wake", "Wake a controller"),
		one("evict", http.MethodPost, "/evict", "Save a controller and release its memory"),
		newWasmTopCommand(w),
		newWasmCheckCommand())
	return group
}

// wasmClient asks a server about its plane.
type wasmClient struct{ kubeconfig string }

// list prints the controllers.
func (w *wasmClient) list(ctx context.Context, out io.Writer, output string) error {
	if output != "table" && output != "wide" && output != "json" {
		return fmt.Errorf("-o %s: neither table nor wide nor json", output)
	}
	body, err := w.request(ctx, http.MethodGet, "controllers")
	if err != nil {
		return err
	}
	if output == "json" {
		return indent(out, body)
	}
	controllers, err := decodeControllers(body)
	if err != nil {
		return err
	}
	return printControllers(out, controllers, output == "wide", time.Now())
}

// controllers asks the server about all controllers.
func (w *wasmClient) controllers(ctx context.Context) ([]plane.Status, error) {
	body, err := w.request(ctx, http.MethodGet, "controllers")
	if err != nil {
		return nil, err
	}
	return decodeControllers(body)
}

func decodeControllers(body []byte) ([]plane.Status, error) {
	var answer struct {
		Controllers []plane.Status `json:"controllers"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("reading the server's answer: %w", err)
	}
	return answer.Controllers, nil
}

func printControllers(out io.Writer, controllers []plane.Status, wide bool, now time.Time) error {
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	head := "NAME\tSTATE\tWAKES\tLAST WAKE\tREASON\tNEXT TIMER\tRESIDENT\tSNAPSHOT\tRESTARTS"
	if wide {
		head += "\tMODULE\tIDENTITY"
	}
	fmt.Fprintln(t, head)
	for _, c := range controllers {
		row := []string{c.Name, string(c.State)}
		if c.State == plane.Native {
			row = append(row, "-", "-", "-", "-", "-", "-", "-")
		} else {
			row = append(row, fmt.Sprint(c.Wakes), ago(c.LastWake, now), dash(printable(c.LastWakeReason)), until(c.NextTimer, now),
				bytesText(c.ResidentBytes), bytesText(c.SnapshotBytes), fmt.Sprint(c.Restarts))
		}
		if wide {
			row = append(row, dash(c.Module), dash(c.Identity))
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable keeps the names of objects, which may be anything, from controlling the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func ago(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return duration.HumanDuration(now.Sub(*t)) + " ago"
}

func until(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return "in " + duration.HumanDuration(max(t.Sub(now), 0))
}

func bytesText(n int64) string {
	switch {
	case n == 0:
		return "0"
	case n < 1<<20:
		return fmt.Sprintf("%.1fKiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1fMiB", float64(n)/(1<<20))
}

// request asks the server and returns its answer to a request that succeeded.
func (w *wasmClient) request(ctx context.Context, method, path string) ([]byte, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	switch {
	case w.kubeconfig != "":
		rules.ExplicitPath = w.kubeconfig
	case os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "":
		rules.ExplicitPath = localKubeconfig()
	}
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, fmt.Errorf("no kubeconfig at %s; is the server running on this machine? --kubeconfig names another", strings.Join(rules.GetLoadingPrecedence(), ", "))
	} else if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("building a client: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(cfg.Host, "/")+server.PlanePath+path, nil)
	if err != nil {
		return nil, fmt.Errorf("building a request: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the server: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the server's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers %s: %s", resp.Status, reason(body))
	}
	return body, nil
}

// reason is what an answer that is no success says: {"error": …} from the plane, {"message": …} from the
// API server, or plain text.
func reason(body []byte) string {
	var answer struct{ Error, Message string }
	if err := json.Unmarshal(body, &answer); err == nil && answer.Error+answer.Message != "" {
		return answer.Error + answer.Message
	}
	return strings.TrimSpace(string(body))
}

func indent(out io.Writer, body []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(body), "", "  "); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	_, err := fmt.Fprintln(out, b.String())
	return err
}
