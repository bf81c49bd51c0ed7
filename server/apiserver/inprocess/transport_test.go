package inprocess

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func request(t *testing.T, ctx context.Context, method, path string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, Host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func transport(h http.HandlerFunc) *Transport { return NewTransport(h, User("somebody")) }

var nobody = authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) { return nil, false, nil })

func TestIdentity(t *testing.T) {
	auth := Authenticator(nobody)
	whoami := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r, ok, err := auth.AuthenticateRequest(req)
		if !ok || err != nil {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "%s %v", r.User.GetName(), r.User.GetGroups())
	})
	for _, tc := range []struct {
		user user.Info
		want string
	}{
		{User("system:kube-scheduler"), "system:kube-scheduler [system:authenticated]"},
		{User("admin", "system:masters"), "admin [system:authenticated system:masters]"},
		{Controller("deployment-controller"), "system:serviceaccount:kube-system:deployment-controller [system:authenticated system:serviceaccounts system:serviceaccounts:kube-system]"},
	} {
		resp, err := NewTransport(whoami, tc.user).RoundTrip(request(t, t.Context(), "GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != tc.want {
			t.Errorf("got %q, %v, want %q", got, err, tc.want)
		}
	}

	// Over a network nothing a client can send makes it anybody.
	srv := httptest.NewServer(whoami)
	defer srv.Close()
	req := request(t, context.WithValue(t.Context(), identityKey{}, User("admin", "system:masters")), "GET", "/", nil)
	req.URL.Host = strings.TrimPrefix(srv.URL, "http://")
	req.Header.Set("X-Remote-User", "admin")
	req.Header.Set("Impersonate-User", "admin")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a network client was recognised: %s", resp.Status)
	}
}

func TestRequestReachesHandlerAndStaysIntact(t *testing.T) {
	tr := transport(func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		if req.RequestURI != "/a?b=c" || req.URL.Scheme != "" || req.RemoteAddr == "" {
			t.Errorf("request %q %v %q", req.RequestURI, req.URL, req.RemoteAddr)
		}
		req.Header.Set("Accept", "spoiled")
		req.URL.Path = "/spoiled"
		w.Header().Set("X-Answer", "yes")
		w.WriteHeader(http.StatusContinue)
		w.WriteHeader(http.StatusCreated)
		w.WriteHeader(http.StatusTeapot) // too late, as with a real connection
		w.Header().Set("X-Answer", "late")
		w.Write(b)
	})
	req := request(t, t.Context(), "POST", "/a?b=c", strings.NewReader("hello"))
	req.Header.Set("Accept", "text/plain")
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil || string(b) != "hello" || resp.StatusCode != http.StatusCreated || resp.Header.Get("X-Answer") != "yes" {
		t.Errorf("got %d %v %q, %v", resp.StatusCode, resp.Header, b, err)
	}
	if req.Header.Get("Accept") != "text/plain" || req.URL.Path != "/a" || req.URL.Scheme != "http" {
		t.Errorf("the caller's request changed: %v %v", req.URL, req.Header)
	}
}

// closeNotifier is http.CloseNotifier, deprecated and what the API server looks for.
type closeNotifier interface{ CloseNotify() <-chan bool }

func TestWatchDeliversEachEventAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := make(chan string)
		tr := transport(func(w http.ResponseWriter, req *http.Request) {
			if _, ok := w.(closeNotifier); !ok {
				t.Error("the writer is no CloseNotifier")
			}
			w.(http.Flusher).Flush()
			for e := range next {
				io.WriteString(w, e)
			}
		})
		resp, err := tr.RoundTrip(request(t, t.Context(), "GET", "/watch", nil))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		for i := range 3 {
			e := fmt.Sprint("event ", i)
			next <- e
			n, err := resp.Body.Read(buf)
			if err != nil || string(buf[:n]) != e {
				t.Fatalf("got %q, %v", buf[:n], err)
			}
		}
		close(next)
		if _, err := resp.Body.Read(buf); err != io.EOF {
			t.Fatalf("got %v", err)
		}
	})
}

func TestCancelAndCloseReachTheHandler(t *testing.T) {
	for name, end := range map[string]func(cancel func(), body io.Closer){
		"cancel": func(cancel func(), _ io.Closer) { cancel() },
		"close":  func(_ func(), body io.Closer) { body.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ended := make(chan error, 1)
				notified := make(chan bool, 1)
				tr := transport(func(w http.ResponseWriter, req *http.Request) {
					w.(http.Flusher).Flush()
					notified <- <-w.(closeNotifier).CloseNotify()
					<-req.Context().Done()
					_, err := io.WriteString(w, "late")
					ended <- err
				})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				resp, err := tr.RoundTrip(request(t, ctx, "GET", "/watch", nil))
				if err != nil {
					t.Fatal(err)
				}
				read := make(chan error, 1)
				go func() { _, err := resp.Body.Read(make([]byte, 1)); read <- err }()
				synctest.Wait()
				end(cancel, resp.Body)
				if err := <-read; err == nil || err == io.EOF {
					t.Errorf("the reader saw %v", err)
				}
				if err := <-ended; !errors.Is(err, context.Canceled) || !<-notified {
					t.Errorf("the handler saw %v", err)
				}
				if _, err := resp.Body.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("a read afterwards: %v", err)
				}
			})
		})
	}
}

func TestCancelBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := transport(func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := tr.RoundTrip(request(t, ctx, "GET", "/", nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPanics(t *testing.T) {
	for name, value := range map[string]any{"abort": http.ErrAbortHandler, "bug": "index out of range"} {
		t.Run(name+" before the answer", func(t *testing.T) {
			tr := transport(func(http.ResponseWriter, *http.Request) { panic(value) })
			if _, err := tr.RoundTrip(request(t, t.Context(), "GET", "/x", nil)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		})
		t.Run(name+" within the answer", func(t *testing.T) {
			tr := transport(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "half"); panic(value) })
			resp, err := tr.RoundTrip(request(t, t.Context(), "GET", "/x", nil))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); string(b) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
}

func TestHandlerWithoutOutput(t *testing.T) {
	resp, err := transport(func(http.ResponseWriter, *http.Request) {}).RoundTrip(request(t, t.Context(), "GET", "/", nil))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("got %v, %v", resp, err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || len(b) != 0 {
		t.Errorf("got %q, %v", b, err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}

func TestWriterWaitsForASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const chunk, chunks = 64 << 10, 100
		var mu sync.Mutex
		written := 0
		tr := transport(func(w http.ResponseWriter, _ *http.Request) {
			for i := range chunks {
				if _, err := w.Write(bytes.Repeat([]byte{byte(i)}, chunk)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				written += chunk
				mu.Unlock()
			}
		})
		resp, err := tr.RoundTrip(request(t, t.Context(), "GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		mu.Lock()
		if ahead := written; ahead > highWater+2*chunk {
			t.Errorf("the writer is %d bytes ahead", ahead)
		}
		mu.Unlock()
		var want []byte
		for i := range chunks {
			want = append(want, bytes.Repeat([]byte{byte(i)}, chunk)...)
		}
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
}

func TestWaitingWriterIsReleasedByClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		tr := transport(func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, highWater)); err != nil {
					ended <- err
					return
				}
			}
		})
		resp, err := tr.RoundTrip(request(t, t.Context(), "GET", "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		resp.Body.Close()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

type closer struct {
	io.Reader
	closed chan struct{}
}

func (c closer) Close() error { close(c.closed); return nil }

func TestRequestBodyIsClosed(t *testing.T) {
	c := closer{strings.NewReader("x"), make(chan struct{})}
	resp, err := transport(func(http.ResponseWriter, *http.Request) {}).RoundTrip(request(t, t.Context(), "POST", "/", c))
	if err != nil {
		t.Fatal(err)
	}
	<-c.closed
	resp.Body.Close()
}

func TestManyAtOnce(t *testing.T) {
	tr := transport(func(w http.ResponseWriter, req *http.Request) {
		for range 10 {
			io.WriteString(w, req.URL.RawQuery)
		}
	})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			q := fmt.Sprintf("n=%d", i)
			resp, err := tr.RoundTrip(request(t, t.Context(), "GET", "/?"+q, nil))
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != strings.Repeat(q, 10) {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
	wg.Wait()
}

func TestUserDoesNotChangeTheCallersGroups(t *testing.T) {
	groups := make([]string, 1, 10)
	groups[0] = "z"
	User("a", groups...)
	if !slices.Equal(groups, []string{"z"}) || groups[:2][1] != "" {
		t.Errorf("got %q", groups[:2])
	}
}

func BenchmarkGet(b *testing.B) {
	payload := bytes.Repeat([]byte("x"), 1<<10)
	tr := transport(func(w http.ResponseWriter, _ *http.Request) { w.Write(payload) })
	for b.Loop() {
		req, _ := http.NewRequest("GET", Host+"/api/v1/namespaces/default", nil)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}
