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
	cut     int   // events after which each watch is ended; 0: never
	refuse  []int // answers to the next watches; 0: none
	watches int   // that were asked for
	ended   int   // how often all watches were ended
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

// endWatches ends every watch that has come to the present.
func (a *api) endWatches() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended++
	a.announce()
}

// announce wakes who waits for a change; api.mu is held.
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
	cut, answer := a.cut, 0
	a.watches++
	ended := a.ended
	a.announce()
	if len(a.refuse) > 0 {
		answer, a.refuse = a.refuse[0], a.refuse[1:]
	}
	a.mu.Unlock()
	switch answer {
	case 0:
	case http.StatusOK: // which is not the last word
		return respond(answer, io.NopCloser(strings.NewReader(`{"type":"ERROR","object":{"kind":"Status","code":410}}`+"\n"))), nil
	default:
		return respond(answer, io.NopCloser(strings.NewReader("refused"))), nil
	}
	pr, pw := io.Pipe()
	go func() {
		for n := from - 1; cut == 0 || n < from-1+cut; n++ {
			a.mu.Lock()
			for n >= len(a.events) {
				changed, over := a.changed, a.ended != ended
				a.mu.Unlock()
				if over {
					pw.Close()
					return
				}
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
