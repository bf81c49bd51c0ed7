// Command web is the demo's web server: it answers every request with the name
// of the pod that served it.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, ":"+cmp.Or(os.Getenv("PORT"), "8080")); err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

// serve answers on addr until ctx is done.
func serve(ctx context.Context, addr string) error {
	pod, err := os.Hostname() // the kubelet sets it to the pod's name
	if err != nil {
		return fmt.Errorf("find out the pod's name: %w", err)
	}
	version := os.Getenv("VERSION")
	srv := &http.Server{Addr: addr, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s from %s\n", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintf(w, "%s %s\n", pod, version)
	})}
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	fmt.Println("web", version, "listening on", addr)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Let requests that are under way finish: a rolling update must lose none.
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := srv.Shutdown(end); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
