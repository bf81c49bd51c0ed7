package deploy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// sniff is how much of a manifest is looked at to tell JSON from YAML.
const sniff = 4096

// decode returns the objects of a manifest in the order in which they should be applied. A manifest is
// any number of YAML documents or of JSON objects; lists stand for their items.
func decode(content []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), sniff)
	for n := 1; ; n++ {
		var document runtime.RawExtension
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			objects, err = appendObjects(objects, document.Raw)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return cmp.Compare(rank(a), rank(b)) })
	return objects, nil
}

// rank puts first what others need.
func rank(o *unstructured.Unstructured) int {
	switch {
	case o.GroupVersionKind().GroupKind() == namespaceKind:
		return 0
	case o.GroupVersionKind().GroupKind() == crdKind:
		return 1
	}
	return 2
}

// appendObjects appends what document, in JSON, holds. Empty documents hold nothing.
func appendObjects(objects []*unstructured.Unstructured, document []byte) ([]*unstructured.Unstructured, error) {
	if document = bytes.TrimSpace(document); len(document) == 0 || string(document) == "null" {
		return objects, nil
	}
	var content any
	if err := json.Unmarshal(document, &content); err != nil {
		return nil, err
	}
	return appendObject(objects, content, "", "")
}

// appendObject appends the object, or the items of the list, in content. Those that do not say what they
// are have the given apiVersion and kind.
func appendObject(objects []*unstructured.Unstructured, content any, apiVersion, kind string) ([]*unstructured.Unstructured, error) {
	fields, ok := content.(map[string]any)
	if !ok {
		return nil, errors.New("not an object with apiVersion, kind and metadata")
	}
	o := &unstructured.Unstructured{Object: fields}
	if o.GetAPIVersion() == "" && o.GetKind() == "" && kind != "" {
		o.SetAPIVersion(apiVersion)
		o.SetKind(kind)
	}
	switch _, err := schema.ParseGroupVersion(o.GetAPIVersion()); {
	case o.GetKind() == "":
		return nil, errors.New("an object has no kind")
	case o.GetAPIVersion() == "":
		return nil, fmt.Errorf("%s has no apiVersion", describe(o))
	case err != nil:
		return nil, fmt.Errorf("%s: %w", describe(o), err)
	}
	if item, isList := strings.CutSuffix(o.GetKind(), "List"); isList && o.IsList() {
		for i, content := range fields["items"].([]any) {
			var err error
			if objects, err = appendObject(objects, content, o.GetAPIVersion(), item); err != nil {
				return nil, fmt.Errorf("item %d: %w", i+1, err)
			}
		}
		return objects, nil
	}
	// YAML takes some words, like no and y, for something other than text.
	for _, field := range []string{"name", "namespace"} {
		if _, _, err := unstructured.NestedString(fields, "metadata", field); err != nil {
			return nil, fmt.Errorf("%s: %w", describe(o), err)
		}
	}
	if o.GetName() == "" {
		return nil, fmt.Errorf("%s has no metadata.name", describe(o))
	}
	// What "kubectl get -o yaml" shows may be a manifest. These fields are about the object it was taken
	// from, and would be refused.
	for _, field := range []string{"managedFields", "resourceVersion", "uid"} {
		unstructured.RemoveNestedField(fields, "metadata", field)
	}
	return append(objects, o), nil
}
