package plane

import (
	"maps"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

func TestParseLog(t *testing.T) {
	const header = "1123 01:09:52.123456       1 file.go:205] "
	for _, c := range []struct {
		line    string
		level   logrus.Level
		message string
		fields  logrus.Fields
	}{
		{"E" + header + `"Unhandled Error" err="sync \"ns/p\" failed" logger="UnhandledError"`, logrus.WarnLevel, "Unhandled Error", logrus.Fields{"error": `sync "ns/p" failed`}},
		{"I" + header + `"Synced" pod="ns/p" after=3 why="a b" left=2`, logrus.DebugLevel, "Synced", logrus.Fields{"pod": "ns/p", "after": "3", "why": "a b", "left": "2"}},
		{"W" + header + `"Alone"`, logrus.WarnLevel, "Alone", logrus.Fields{}},
		{"W" + header + "plain words, a=b", logrus.WarnLevel, "plain words, a=b", nil},
		{"E" + header + `"Odd" object={"a": "b c"} err="why"`, logrus.WarnLevel, `"Odd" object={"a": "b c"} err="why"`, nil},
		{"E" + header + `"Odd"err="why"`, logrus.WarnLevel, `"Odd"err="why"`, nil},
		{"E" + header + `"Odd" err="why`, logrus.WarnLevel, "Odd", logrus.Fields{"error": `"why`}},
		{"E" + header, logrus.WarnLevel, "", nil},
		{"panic: all is lost", logrus.ErrorLevel, "panic: all is lost", nil},
		{"F" + header + "the end", logrus.ErrorLevel, "F" + header + "the end", nil},
	} {
		level, message, fields := parseLog(c.line)
		if level != c.level || message != c.message || !maps.Equal(fields, c.fields) {
			t.Errorf("%s: %s, %q, %v", c.line, level, message, fields)
		}
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add(`E1123 01:09:52.123456       1 file.go:205] "Message" err="why" n=1`)
	f.Add("I1] ")
	f.Add("panic")
	f.Fuzz(func(t *testing.T, line string) {
		_, message, fields := parseLog(line)
		for key := range fields {
			if key == "" || strings.ContainsAny(key, ` ="`) {
				t.Errorf("key %q", key)
			}
		}
		if len(message) > 4*len(line) { // invalid UTF-8 becomes a character of three bytes
			t.Errorf("%d bytes of %d", len(message), len(line))
		}
	})
}
