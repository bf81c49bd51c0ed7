package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/bombsimon/logrusr/v4"
	"github.com/go-logr/logr"
	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

const (
	ownPackages = "github.com/dormouse-k8s/dormouse/"
	// kineServer logs a transaction that fails, with the object, which may be a Secret.
	kineServer = "github.com/k3s-io/kine/pkg/server."
)

// logging is logrus in front of everything.
type logging struct {
	// started is set once everything is ready. While components start one after another they complain
	// about each other's absence; those errors are worth no more than debugging.
	started atomic.Bool
}

// setUpLogging makes logrus write to w. What Kubernetes logs through klog becomes debug messages, its
// errors become warnings, for components report as errors what they go on to retry. Without debug the
// informational messages of libraries that use logrus themselves, such as kine and containerd, are left
// out: what is left is what a user waits for.
func setUpLogging(w io.Writer, debug bool) *logging {
	l := &logging{}
	logrus.SetOutput(w)
	logrus.SetReportCaller(true)
	if debug {
		logrus.SetLevel(logrus.DebugLevel)
	}
	logrus.SetFormatter(&formatter{next: &logrus.TextFormatter{FullTimestamp: true}, all: debug})

	// klog's information is our debugging, one level down.
	sink := l.lower(logrusr.New(logrus.StandardLogger()).V(1))
	klog.SetLoggerWithOptions(sink, klog.ContextualLogger(true), klog.WriteKlogBuffer(l.writeKlog))
	return l
}

// failure is the level of an error of a component.
func (l *logging) failure() logrus.Level {
	if l.started.Load() {
		return logrus.WarnLevel
	}
	return logrus.DebugLevel
}

// writeKlog takes the lines of klog's unstructured calls, such as
// "E1123 01:09:52.123456   12345 file.go:205] message".
func (l *logging) writeKlog(line []byte) {
	level := logrus.DebugLevel
	if len(line) > 0 {
		switch line[0] {
		case 'E':
			level = l.failure()
		case 'F': // the process ends
			level = logrus.ErrorLevel
		}
	}
	if _, message, ok := bytes.Cut(line, []byte("] ")); ok {
		line = message
	}
	logrus.StandardLogger().Log(level, strings.TrimSpace(string(line)))
}

// lower makes what is logged as an error a message of the level failure.
func (l *logging) lower(next logr.Logger) logr.Logger {
	return next.WithSink(&lowered{LogSink: next.GetSink(), log: l})
}

type lowered struct {
	logr.LogSink
	log *logging
}

func (s *lowered) Error(err error, msg string, kv ...any) {
	fields := logrus.Fields{}
	if err != nil {
		fields["error"] = err
	}
	for i := 0; i+1 < len(kv); i += 2 {
		fields[fmt.Sprint(kv[i])] = fmt.Sprint(kv[i+1])
	}
	logrus.WithFields(fields).Log(s.log.failure(), msg)
}

func (s *lowered) WithValues(kv ...any) logr.LogSink {
	return &lowered{s.LogSink.WithValues(kv...), s.log}
}

func (s *lowered) WithName(name string) logr.LogSink {
	return &lowered{s.LogSink.WithName(name), s.log}
}

// formatter formats nothing for informational messages of others, unless all are wanted, and of objects in the
// datastore their keys alone.
type formatter struct {
	next logrus.Formatter
	all  bool
}

func (f *formatter) Format(e *logrus.Entry) ([]byte, error) {
	if !f.all && e.Level >= logrus.InfoLevel && e.Caller != nil && !own(e.Caller.Function) {
		return nil, nil
	}
	if e.Caller != nil && strings.HasPrefix(e.Caller.Function, kineServer) {
		e.Message, _, _ = strings.Cut(e.Message, ` value:"`)
	}
	e.Caller = nil // known only for the sake of the lines above
	return f.next.Format(e)
}

func own(function string) bool {
	return strings.HasPrefix(function, ownPackages) || strings.HasPrefix(function, "main.")
}
