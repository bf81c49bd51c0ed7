package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// configFlag is the one flag that is not a key: a file cannot say which file it is.
const configFlag = "config"

// Load fills c, whose flags fs have been parsed from the command line, with what the environment and the
// configuration files say about the flags that were not given there. Notes are for the user to see, not
// errors. c is of no use after an error.
func (c *Config) Load(flags *pflag.FlagSet, lookupEnv func(string) (string, bool)) (notes []string, err error) {
	settled := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) {
		// Not Visit, which does not know of flags that were parsed as part of another set.
		if settled[f.Name] = f.Changed; f.Changed || err != nil || !isKey(f) {
			return
		}
		suffix := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		name := "DORMOUSE_" + suffix
		v, ok := lookupEnv(name)
		if !ok {
			if v, ok = lookupEnv("K3S_" + suffix); !ok {
				return
			}
			notes = append(notes, fmt.Sprintf("using K3S_%s; the name here is %s", suffix, name))
			name = "K3S_" + suffix
		}
		settled[f.Name] = true
		if e := f.Value.Set(v); e != nil {
			err = fmt.Errorf("%s=%q in the environment: %w", name, v, e)
		}
	})
	if err != nil {
		return notes, err
	}

	given := flags.Changed(configFlag) || settled[configFlag]
	files, err := configFiles(c.ConfigFile, given)
	if err != nil {
		return notes, err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return notes, fmt.Errorf("reading the configuration: %w", err)
		}
		if err := apply(flags, file, content, settled); err != nil {
			return notes, err
		}
	}
	return notes, c.finish()
}

// isKey excludes what cobra adds to every command.
func isKey(f *pflag.Flag) bool { return f.Name != "help" && f.Name != "version" }

// configFiles are the main file and those of its directory, in the order in which they apply. The main
// file may be missing unless the user named it.
func configFiles(main string, given bool) ([]string, error) {
	var files []string
	switch _, err := os.Stat(main); {
	case err == nil:
		files = append(files, main)
	case given || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	more, err := filepath.Glob(main + ".d/*.yaml") // sorted
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", main, err)
	}
	return append(files, more...), nil
}

// entry is one key of a configuration file.
type entry struct {
	key    string
	line   int
	add    bool // key+: adds to what earlier files said
	list   bool
	values []string
}

// apply sets the flags that content names and that are not settled by something stronger.
func apply(flags *pflag.FlagSet, file string, content []byte, settled map[string]bool) error {
	entries, err := parse(content)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, e := range entries {
		wrong := func(format string, a ...any) error {
			return fmt.Errorf("%s: line %d: %s: %w", file, e.line, e.key, fmt.Errorf(format, a...))
		}
		f := flags.Lookup(e.key)
		if f == nil || !isKey(f) || e.key == configFlag {
			return wrong("no such key; the keys are the flags of \"dormouse server --help\" without the dashes")
		}
		multi, isList := f.Value.(pflag.SliceValue)
		switch {
		case isList:
			if settled[e.key] {
				continue
			}
			values := e.values
			if e.add {
				values = append(slices.Clone(multi.GetSlice()), values...)
			}
			if err := multi.Replace(values); err != nil {
				return wrong("%w", err)
			}
		case e.add:
			return wrong("it holds one value, so %s+ means nothing", e.key)
		case e.list:
			return wrong("it holds one value, not a list")
		case settled[e.key]:
		default:
			if err := f.Value.Set(e.values[0]); err != nil {
				return wrong("%q: %w", e.values[0], err)
			}
		}
	}
	return nil
}

// parse reads a file of keys with a scalar or a list of scalars each. Values stay as they are written, so
// that 0600 is a mode and not the number 384.
func parse(content []byte) ([]entry, error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(content))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil // empty
	case err != nil:
		return nil, oneLine(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("it holds more than one document")
	}
	top := resolve(doc.Content[0])
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil, nil // comments alone
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: not keys and values, such as \"debug: true\"", top.Line)
	}
	var entries []entry
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, val := top.Content[i], resolve(top.Content[i+1])
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key has to be a name", key.Line)
		}
		e := entry{key: key.Value, line: key.Line}
		e.key, e.add = strings.CutSuffix(e.key, "+")
		if first, dup := seen[key.Value]; dup {
			return nil, fmt.Errorf("line %d: %s: given twice, first on line %d", key.Line, key.Value, first)
		}
		seen[key.Value] = key.Line
		items := []*yaml.Node{val}
		if e.list = val.Kind == yaml.SequenceNode; e.list {
			items = val.Content
		}
		for _, item := range items {
			if item = resolve(item); item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
				return nil, fmt.Errorf("line %d: %s: a value or a list of values is needed", key.Line, key.Value)
			}
			e.values = append(e.values, item.Value)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " "))
}
