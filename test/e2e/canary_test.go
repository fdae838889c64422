package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Every token that a test uses is a canary: at its end each cluster's whole
// directory is searched for it. Twelve characters of one are enough to betray
// it, the last four may be shown.
const canaryDigits = 24

// canaries are the parts of secrets that must not be found.
type canaries struct {
	mu    sync.Mutex
	parts map[string]string // part of the secret -> what it is; guarded by mu
}

func (c *canaries) add(what, part string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parts == nil {
		c.parts = make(map[string]string)
	}
	c.parts[part] = what
}

// secret makes a token whose middle is watched for.
func (c *canaries) secret(what, prefix string) string {
	b := make([]byte, canaryDigits/2)
	rand.Read(b)
	text := hex.EncodeToString(b)
	c.add(what, text[:12])
	c.add(what, text[8:canaryDigits-4])
	return prefix + text
}

// mayHold says which files are made to hold secrets: etcd's own, the last good
// state, the generated token, and what the test itself wrote.
func mayHold(path string) bool {
	for _, part := range strings.Split(filepath.ToSlash(path), "/") {
		if part == "etcd" || part == inputDir || part == "admin.token" || strings.HasPrefix(part, "last-good.json") {
			return true
		}
	}
	return false
}

// search reports every file below dir in which a canary sits.
func (c *canaries) search(t testing.TB, dir string) (files int, size int64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if mayHold(rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		size += int64(len(data))
		for part, what := range c.parts {
			if i := bytes.Index(data, []byte(part)); i >= 0 {
				t.Errorf("%s: %s stands in it: …%s…", rel, what, around(data, i, len(part)))
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return files, size
}

// around shows where a canary was found; in a test's output it does no harm.
func around(data []byte, i, n int) []byte {
	return data[max(0, i-160):min(len(data), i+n+40)]
}
