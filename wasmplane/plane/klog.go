package plane

import (
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
)

// parseLog takes apart a line that a controller writes in klog's text format, as
// `E1123 01:09:52.123456       1 file.go:205] "Message" err="why" pod="ns/p"`. What
// upstream calls an error is nearly always tried again, and is a warning here, as it
// is for controllers that run natively. Anything else is a Go program's last words.
//
// https://github.com/kubernetes/community/blob/master/contributors/devel/sig-instrumentation/migration-to-structured-logging.md
func parseLog(line string) (level logrus.Level, message string, fields logrus.Fields) {
	header, text, ok := strings.Cut(line, "] ")
	if !ok || len(header) < len("E1123 ") {
		return logrus.ErrorLevel, line, nil
	}
	switch header[0] {
	case 'I':
		level = logrus.DebugLevel
	case 'W', 'E':
		level = logrus.WarnLevel
	default:
		return logrus.ErrorLevel, line, nil
	}
	if message, fields, ok := structured(text); ok {
		return level, message, fields
	}
	return level, text, nil
}

// structured takes apart the text of klog's structured calls. It leaves alone what has
// values that are neither words nor quoted, as structs are.
func structured(text string) (message string, fields logrus.Fields, ok bool) {
	message, rest, ok := unquotePrefix(text)
	if !ok {
		return "", nil, false
	}
	fields = logrus.Fields{}
	for rest != "" {
		pair, spaced := strings.CutPrefix(rest, " ")
		key, value, paired := strings.Cut(pair, "=")
		if !spaced || !paired || key == "" || strings.ContainsAny(key, ` "`) {
			return "", nil, false
		}
		var word string
		if word, rest, ok = unquotePrefix(value); !ok {
			end := strings.IndexByte(value+" ", ' ')
			word, rest = value[:end], value[end:]
		}
		switch key {
		case "err":
			key = logrus.ErrorKey
		case "logger": // part of the program's inside
			continue
		}
		fields[key] = word
	}
	return message, fields, true
}

// unquotePrefix is the Go string that text begins with.
func unquotePrefix(text string) (value, rest string, ok bool) {
	quoted, err := strconv.QuotedPrefix(text)
	if err != nil || quoted[0] != '"' {
		return "", "", false
	}
	value, err = strconv.Unquote(quoted)
	return value, text[len(quoted):], err == nil
}
