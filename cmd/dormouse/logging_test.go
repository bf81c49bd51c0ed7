package main

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/sirupsen/logrus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/klog/v2"
)

func restoreLogging(t *testing.T) {
	t.Helper()
	std := logrus.StandardLogger()
	out, level, format, caller := std.Out, std.Level, std.Formatter, std.ReportCaller
	t.Cleanup(func() {
		klog.ClearLogger()
		logrus.SetOutput(out)
		logrus.SetLevel(level)
		logrus.SetFormatter(format)
		logrus.SetReportCaller(caller)
	})
}

func TestLevelsOfComponents(t *testing.T) {
	restoreLogging(t)
	var out bytes.Buffer
	l := setUpLogging(&out, false)
	line := func(what string, log func()) string {
		out.Reset()
		log()
		if n := strings.Count(out.String(), "\n"); n > 1 {
			t.Errorf("%s: %d lines", what, n)
		}
		return out.String()
	}

	if got := line("klog.Info", func() { klog.Info("x"); klog.InfoS("x"); klog.Warning("x"); klog.Background().Info("x") }); got != "" {
		t.Errorf("information of a component: %q", got)
	}
	early := func() {
		klog.Error("x")
		klog.ErrorS(errors.New("e"), "x")
		klog.Background().WithName("n").Error(nil, "x")
	}
	if got := line("errors during the start", early); got != "" {
		t.Errorf("errors during the start: %q", got)
	}
	l.started.Store(true)
	if got := line("klog.Errorf", func() { klog.Errorf("bad] thing %d", 1) }); !strings.Contains(got, `level=warning msg="bad] thing 1"`) {
		t.Errorf("got %q", got)
	}
	if got := line("klog.ErrorS", func() { klog.ErrorS(errors.New("e"), "bad", "pod", klog.KRef("ns", "p")) }); !strings.Contains(got, "level=warning msg=bad error=e pod=ns/p") {
		t.Errorf("got %q", got)
	}
	if got := line("contextual", func() { klog.Background().WithName("n").WithValues("k", "v").Error(errors.New("e"), "bad") }); !strings.Contains(got, "level=warning msg=bad error=e") {
		t.Errorf("got %q", got)
	}
	// What ends the process is never lost.
	if got := line("fatal", func() { l.writeKlog([]byte("F1123 01:09:52.123456   12345 file.go:205] the end\n")) }); !strings.Contains(got, `level=error msg="the end"`) {
		t.Errorf("got %q", got)
	}
}

func TestInformationOfLibraries(t *testing.T) {
	restoreLogging(t)
	for _, debug := range []bool{false, true} {
		var out bytes.Buffer
		setUpLogging(&out, debug)
		for function, level := range map[string]logrus.Level{
			"github.com/k3s-io/kine/pkg/endpoint.Listen":                    logrus.InfoLevel,
			"github.com/k3s-io/kine/pkg/endpoint.fail":                      logrus.WarnLevel,
			"github.com/dormouse-k8s/dormouse/server.Run":                   logrus.InfoLevel,
			"github.com/dormouse-k8s/dormouse/cmd/dormouse.runServer.func1": logrus.InfoLevel,
		} {
			e := logrus.NewEntry(logrus.StandardLogger())
			e.Level, e.Message, e.Caller = level, "x", &runtime.Frame{Function: function}
			b, err := logrus.StandardLogger().Formatter.Format(e)
			if err != nil {
				t.Fatal(err)
			}
			want := debug || level == logrus.WarnLevel || strings.Contains(function, "dormouse")
			if (len(b) > 0) != want {
				t.Errorf("debug %v, %s at %s: %q", debug, function, level, b)
			}
			if bytes.Contains(b, []byte("func=")) {
				t.Errorf("shows the caller: %q", b)
			}
		}
	}
}

type fullDatastore struct{ server.Backend }

func (fullDatastore) Create(context.Context, string, []byte, int64) (int64, error) {
	return 0, errors.New("no room")
}

// TestSecretsAreNotLogged: kine logs a write that fails, with what was to be written.
func TestSecretsAreNotLogged(t *testing.T) {
	restoreLogging(t)
	var out bytes.Buffer
	setUpLogging(&out, false)
	kine := server.New(fullDatastore{}, "unix", 0, "")
	key := []byte("/registry/secrets/ns/name")
	_, err := kine.Txn(t.Context(), &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{Key: key, Target: etcdserverpb.Compare_MOD, TargetUnion: &etcdserverpb.Compare_ModRevision{}}},
		Success: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestPut{
			RequestPut: &etcdserverpb.PutRequest{Key: key, Value: []byte("password")},
		}}},
	})
	if got := out.String(); err == nil || !strings.Contains(got, string(key)) || strings.Contains(got, "password") {
		t.Errorf("%v, logged: %s", err, got)
	}
}
