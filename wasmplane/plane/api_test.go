package plane

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// api is an API server of one resource, /objects, which can be watched from any
// version, and of /results, where the guests leave what they made of it.
type api struct {
	mu      sync.Mutex
	changed chan struct{}
	events  []string // event k has version k+2
	results map[string]string
	cut     int  // events after which each watch is ended; 0: never
	gone    bool // versions are refused with 410
}

func newAPI() *api {
	return &api{changed: make(chan struct{}), results: map[string]string{}}
}

// put adds an event.
func (a *api) put(typ, name, value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := map[string]any{"type": typ, "object": map[string]any{
		"metadata": map[string]string{"name": name, "uid": "uid-" + name, "resourceVersion": strconv.Itoa(len(a.events) + 2)},
		"value":    value,
	}}
	b, _ := json.Marshal(e)
	a.events = append(a.events, string(b)+"\n")
	a.announce()
}

// bookmark sends one to all watches.
func (a *api) announce() {
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *api) version() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(len(a.events) + 1)
}

func (a *api) got() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.results)
}

// await waits until cond holds for the results.
func (a *api) await(t *testing.T, what string, cond func(map[string]string) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		a.mu.Lock()
		ok, changed := cond(a.results), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("no %s after 30 s; results: %v", what, a.got())
		}
	}
}

// RoundTrip implements http.RoundTripper.
func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	if name, ok := strings.CutPrefix(r.URL.Path, "/results/"); ok {
		value, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		a.results[name] = string(value)
		a.announce()
		a.mu.Unlock()
		return respond(http.StatusOK, io.NopCloser(strings.NewReader("ok"))), nil
	}
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	gone, cut := a.gone, a.cut
	a.mu.Unlock()
	if gone {
		return respond(http.StatusGone, io.NopCloser(strings.NewReader("gone"))), nil
	}
	pr, pw := io.Pipe()
	go func() {
		for n := from - 1; cut == 0 || n < from-1+cut; n++ {
			a.mu.Lock()
			for n >= len(a.events) {
				changed := a.changed
				a.mu.Unlock()
				select {
				case <-changed:
				case <-r.Context().Done():
					pw.CloseWithError(r.Context().Err())
					return
				}
				a.mu.Lock()
			}
			e := a.events[n]
			a.mu.Unlock()
			if _, err := io.WriteString(pw, e); err != nil {
				return
			}
		}
		pw.Close()
	}()
	return respond(http.StatusOK, pr), nil
}

func respond(code int, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
}
