package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) topCommand() *cobra.Command {
	interval := 2 * time.Second
	var looks int
	var order string
	cmd := &cobra.Command{
		Use: "top", Short: "Live rates per instance, the busiest first",
		Long: `Shows requests, errors and bytes per second of every instance, from what changed between
two looks at the cluster's status. Keys: r requests, e errors, a active, l latency, n name
choose the order; q quits.

Where the output is no terminal it prints one table per look.`,
		Example: "  lbctl top\n  lbctl top --sort errors --interval 5s\n  lbctl top --looks 1 | head",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if orderKey(order) == 0 {
				return usagef("--sort %q: it is one of %s%s", order, strings.Join(orders, ", "), lb.DidYouMean(order, orders))
			}
			if looks < 0 {
				return usagef("--looks %d is negative", looks)
			}
			return c.top(cmd, interval, looks, order)
		},
	}
	intervalFlag(cmd, &interval)
	cmd.Flags().IntVar(&looks, "looks", 0, "end after so many tables; 0: go on until interrupted (`number`)")
	cmd.Flags().StringVar(&order, "sort", "requests", "`order`: requests, errors, active, latency or name")
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(orders, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var orders = []string{"requests", "errors", "active", "latency", "name"}

func orderKey(order string) byte {
	for _, o := range orders {
		if o == order {
			return o[0]
		}
	}
	return 0
}

// errLooked ends the command after the last look.
var errLooked = errors.New("looked")

func (c *cli) top(cmd *cobra.Command, interval time.Duration, looks int, order string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	cmd.SetContext(ctx)
	s := &screen{order: orderKey(order)}
	restore, err := c.takeTerminal(s, cancel)
	if err != nil {
		return err
	}
	defer restore()
	return c.watchRates(cmd, s, interval, looks)
}

// watchRates looks again and again, and shows what happened in between.
func (c *cli) watchRates(cmd *cobra.Command, s *screen, interval time.Duration, looks int) error {
	var before *admin.Status
	shown := 0
	err := c.repeat(cmd, interval, func(ctx context.Context, cl *admin.Client) error {
		now, err := cl.Status(ctx)
		if err != nil {
			if before == nil || !errors.Is(err, lb.ErrUnavailable) {
				return err
			}
			return s.write(c, "lbctl: "+clean(err.Error())+"; trying again\n")
		}
		prev := before
		before = now
		if prev == nil {
			return s.write(c, "")
		}
		rates := ratesOf(prev, now)
		if c.output != "table" {
			err = c.print(admin.List[rate]{Items: rates}, nil)
		} else {
			err = s.show(c, now, rates)
		}
		if shown++; err == nil && shown == looks {
			return errLooked
		}
		return err
	})
	if errors.Is(err, errLooked) {
		return nil
	}
	return err
}

// rate is what an instance did between two looks.
type rate struct {
	App      string  `json:"app"`
	Instance string  `json:"instance"`
	Status   string  `json:"status"`
	Requests float64 `json:"requests_per_second"`
	Errors   float64 `json:"errors_per_second"`
	Active   int64   `json:"active"`
	Streams  int64   `json:"streams"`
	P50      float64 `json:"p50_ms"` // of the last minute
	P99      float64 `json:"p99_ms"`
	BytesIn  float64 `json:"bytes_in_per_second"`
	BytesOut float64 `json:"bytes_out_per_second"`
	Retries  float64 `json:"retries_per_second"`
	natural  int     // place by application and name
}

// ratesOf compares two looks. An instance that only the later one holds has no
// rate yet.
func ratesOf(before, now *admin.Status) []rate {
	seconds := now.Timestamp.Sub(before.Timestamp).Seconds()
	rates := []rate{}
	for i, r := range statusRows(now) {
		out := rate{
			App: r.app, Instance: r.instance, Status: r.Status, Active: r.Active, Streams: r.Streams,
			P50: r.LatencyRecent.P50, P99: r.LatencyRecent.P99, natural: i,
		}
		if old := instanceIn(before, r.app, r.instance); old != nil && seconds > 0 {
			per := func(a, b uint64) float64 { return max(float64(b)-float64(a), 0) / seconds }
			out.Requests = per(old.Requests, r.Requests)
			out.Errors = per(old.Errors, r.Errors)
			out.Retries = per(old.Retries, r.Retries)
			out.BytesIn = per(old.BytesIn, r.BytesIn)
			out.BytesOut = per(old.BytesOut, r.BytesOut)
		}
		rates = append(rates, out)
	}
	return rates
}

func instanceIn(s *admin.Status, app, name string) *admin.StatusInstance {
	if a := s.Applications[app]; a != nil {
		return a.Instances[name]
	}
	return nil
}

func sortRates(rates []rate, order byte) {
	key := func(r *rate) float64 {
		switch order {
		case 'e':
			return r.Errors
		case 'a':
			return float64(r.Active)
		case 'l':
			return r.P99
		case 'n':
			return 0
		}
		return r.Requests
	}
	sort.Slice(rates, func(i, j int) bool {
		if a, b := key(&rates[i]), key(&rates[j]); a != b {
			return a > b
		}
		return rates[i].natural < rates[j].natural
	})
}

// screen is the terminal, or the output that is none.
type screen struct {
	mu      sync.Mutex // guards what follows, between keys and looks
	order   byte
	raw     bool
	rates   []rate
	status  *admin.Status
	height  func() int
	started bool
}

func (s *screen) show(c *cli, status *admin.Status, rates []rate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.rates = status, rates
	return s.drawLocked(c)
}

func (s *screen) drawLocked(c *cli) error {
	if s.status == nil {
		return nil
	}
	sortRates(s.rates, s.order)
	t := &table{color: c.color}
	statusHead(t, s.status, true)
	t.header("APPLICATION", "INSTANCE", "STATUS", ">REQ/S", ">ERR/S", ">ACTIVE", ">P50", ">P99", ">OUT/S")
	for _, r := range s.rates {
		errs := cell{text: rateNumber(r.Errors)}
		if r.Errors > 0 {
			errs.color = red
		}
		t.row(r.App, r.Instance, statusCell(r.Status), rateNumber(r.Requests), errs, r.Active, millis(r.P50), millis(r.P99), bytesText(r.BytesOut))
	}
	if !s.raw {
		text := t.render(0)
		if s.started {
			text = "\n" + text
		}
		s.started = true
		_, err := io.WriteString(c.out, text)
		return err
	}
	// In raw mode a line feed does not return the carriage.
	_, err := io.WriteString(c.out, clearScreen+strings.ReplaceAll(fit(t.render(c.width()), s.height()), "\n", "\r\n"))
	return err
}

// write shows a message, or while there is nothing to show, that one is waited for.
func (s *screen) write(c *cli, message string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.raw {
		if message == "" {
			message = "looking …\n"
		}
		_, err := io.WriteString(c.out, clearScreen+strings.ReplaceAll(message, "\n", "\r\n"))
		return err
	}
	_, err := io.WriteString(c.err, message)
	return err
}

func rateNumber(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 10:
		return fmt.Sprintf("%.1f", v)
	}
	return short(v)
}

// takeTerminal switches to the alternate screen and reads keys, if input and
// output are terminals. The function it returns gives the terminal back.
func (c *cli) takeTerminal(s *screen, quit func()) (restore func(), err error) {
	in, ok := c.in.(*os.File)
	if !ok || !isTerminal(c.in) || !isTerminal(c.out) || c.output != "table" {
		return func() {}, nil
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return nil, fmt.Errorf("take the terminal: %w", err)
	}
	s.raw = true
	s.height = c.height
	fmt.Fprint(c.out, enterScreen)
	// It ends with the process: a read of a terminal cannot be cancelled, and
	// after the command there is nothing left but to exit.
	go s.keys(c, in, quit)
	return func() {
		fmt.Fprint(c.out, leaveScreen)
		_ = term.Restore(int(in.Fd()), old)
	}, nil
}

// keys acts on what is typed until q, Ctrl-C or the end of input.
func (s *screen) keys(c *cli, in io.Reader, quit func()) {
	defer quit()
	b := make([]byte, 1)
	for {
		if n, err := in.Read(b); n == 0 || err != nil {
			return
		}
		switch b[0] {
		case 'q', 'Q', 3, 4: // also Ctrl-C and Ctrl-D, which raw mode hands over as bytes
			return
		case 'r', 'e', 'a', 'l', 'n':
			s.mu.Lock()
			s.order = b[0]
			_ = s.drawLocked(c)
			s.mu.Unlock()
		}
	}
}
