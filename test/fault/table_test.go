package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"difylb/test/testbed"
)

// row is what came of a case.
type row struct {
	fault, promise                      string
	sent, failed, cut, moved, misplaced int
	whole                               time.Duration
	order                               int
}

// results collects rows in the order in which the cases are declared.
var results resultList

type resultList struct {
	mu   sync.Mutex
	list []row // guarded by mu
}

func (l *resultList) add(r row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, r)
}

func (l *resultList) rows() []row {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list
}

// table is the Markdown of what was found.
func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| what goes wrong | promised | sent | failed | cut | whole after |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %.1f s |\n", r.fault, r.promise, r.sent, r.failed, r.cut, r.whole.Seconds())
	}
	return b.String()
}

// The table stands between these lines of the page.
const (
	tableBegins = "<!-- table: written by `make fault` -->\n"
	tableEnds   = "<!-- end of table -->\n"
)

func updatePage(rows []row) error {
	path := filepath.Join(testbed.Repository(), "docs", "reliability.md")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(data), tableBegins)
	_, tail, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table", path)
	}
	return os.WriteFile(path, []byte(head+tableBegins+"\n"+table(rows)+"\n"+tableEnds+tail), 0o644)
}
