package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestReadHeaders_ReadsAndRefuses(t *testing.T) {
	for _, c := range []struct {
		text string
		want map[string]string
		err  string
	}{
		{"", map[string]string{}, ""},
		{"# credentials\n\nAuthorization: Bearer a:b c\r\nx-tenant:7\n", map[string]string{"authorization": "Bearer a:b c", "x-tenant": "7"}, ""},
		{"X-Empty:", map[string]string{"x-empty": ""}, ""},
		{"ok: 1\nsecret-alone", nil, "line 2"},
		{"two words: secret", nil, "line 1"},
		{": secret", nil, "line 1"},
		{"a: secret\x01", nil, "line 1"},
		{"a: 1\nA: secret", nil, "stands twice"},
	} {
		path := filepath.Join(t.TempDir(), "headers")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadHeaders("otlp-headers-file", path)
		if c.err == "" {
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%q: %v, %v", c.text, got, err)
			}
			continue
		}
		var usage *UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	if _, err := ReadHeaders("otlp-headers-file", "/no/such/file"); err == nil {
		t.Error("a file that is not there was read")
	}
}
