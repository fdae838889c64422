package browser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"difylb/test/testbed"
)

// patience is for everything that the page does by itself; it asks for figures
// each two seconds.
const patience = 15 * time.Second

// chromium returns the path of the browser. Without it the test is skipped,
// unless DIFYLB_DEMAND_TOOLS is set.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("DIFYLB_DEMAND_TOOLS") != "" {
		t.Fatal("chromium is not installed (Debian package chromium), and DIFYLB_DEMAND_TOOLS is set")
	}
	t.Skip("NOT TESTED: chromium is not installed; it is in the Debian package chromium")
	return ""
}

// startBrowser returns the context of a browser with a profile of its own,
// whose processes end with the test.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	program := chromium(t)
	home, err := os.MkdirTemp(testbed.Scratch, "home-")
	if err != nil {
		t.Fatal(err)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program), chromedp.NoSandbox, // the sandbox needs rights that a container has not; the page is ours
		chromedp.UserDataDir(filepath.Join(home, "profile")), chromedp.WindowSize(1280, 900),
		chromedp.NoInheritEnv, chromedp.Env(testbed.CleanEnvironment(home)...),
		chromedp.Flag("lang", "en-US"), chromedp.Flag("accept-lang", "en-US"), chromedp.Flag("disable-component-update", true),
	)
	ctx, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, shut := chromedp.NewContext(ctx)
	t.Cleanup(shut)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %s", program, err)
	}
	return ctx
}

// tab is one tab of the browser. What goes wrong in it is collected: messages
// of the console, failed calls, and calls to anything but the given origin.
type tab struct {
	t      *testing.T
	ctx    context.Context
	origin string

	mu       sync.Mutex
	problems []string // guarded by mu
	forgiven []string // guarded by mu
}

func openTab(t *testing.T, browser context.Context, origin string) *tab {
	t.Helper()
	ctx, shut := chromedp.NewContext(browser)
	t.Cleanup(shut)
	p := &tab{t: t, ctx: ctx, origin: origin}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Listen(ctx, p.note); err != nil {
		t.Fatal(err)
	}
	p.do("open the page", chromedp.Navigate(origin+"/"))
	return p
}

// note is called for every event of the tab.
func (p *tab) note(event any) {
	what := ""
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" {
			what = fmt.Sprintf("console: %s %v", e.Type, e.Args)
		}
	case *runtime.EventExceptionThrown:
		what = "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			what += " " + e.ExceptionDetails.Exception.Description
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			what = fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		}
	case *network.EventLoadingFailed:
		if !e.Canceled {
			what = fmt.Sprintf("failed: %s %s", e.ErrorText, e.BlockedReason)
		}
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, p.origin+"/") && !strings.HasPrefix(u, "data:") {
			what = "asks another server: " + u
		} else if strings.Contains(u, "lb-") || strings.Contains(u, "token=") {
			what = "a token stands in the address: " + u
		}
	}
	if what == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range p.forgiven {
		if strings.Contains(what, text) {
			return
		}
	}
	p.problems = append(p.problems, what)
}

// forgive names what browsers log although the page takes it as it should,
// such as every refused call.
func (p *tab) forgive(texts ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgiven = append(p.forgiven, texts...)
}

// clean reports what went wrong since it was last asked.
func (p *tab) clean(where string) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, what := range p.problems {
		p.t.Errorf("%s: %s", where, what)
	}
	p.problems = nil
}

func (p *tab) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatalf("%s: %s\nthe page says:\n%s", what, err, p.words())
	}
}

// value evaluates an expression; promises are waited for.
func value[T any](p *tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %s", expression, err)
	}
	return v
}

// words is all that the page says.
func (p *tab) words() string {
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`document.body.innerText`))
	if err != nil {
		return err.Error()
	}
	return text
}

// text is what stands in the first element of a selector; "" when there is none.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return value[string](p, `document.querySelector(`+strconv.Quote(selector)+`)?.innerText ?? ""`)
}

// count is how many elements a selector finds.
func (p *tab) count(selector string) int {
	p.t.Helper()
	return value[int](p, `document.querySelectorAll(`+strconv.Quote(selector)+`).length`)
}

// await waits until the page makes an expression true.
func (p *tab) await(what, expression string) {
	p.t.Helper()
	begun := time.Now()
	for !value[bool](p, `Boolean(`+expression+`)`) {
		if time.Since(begun) > patience {
			p.t.Fatalf("%s: not within %s\nthe page says:\n%s", what, patience, p.words())
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// awaitText waits until the elements of a selector together hold the text.
func (p *tab) awaitText(selector, text string) {
	p.t.Helper()
	p.await(fmt.Sprintf("%s says %q", selector, text), fmt.Sprintf(`[...document.querySelectorAll(%q)].some((e) => e.innerText.includes(%q))`, selector, text))
}

// awaitNone waits until no element fits.
func (p *tab) awaitNone(selector string) {
	p.t.Helper()
	p.await("no "+selector, `!document.querySelector(`+strconv.Quote(selector)+`)`)
}

// click waits for an element, and clicks on it with the mouse.
func (p *tab) click(selector string) {
	p.t.Helper()
	p.do("click "+selector, chromedp.Click(chromedp.CSS(selector)))
}

// press strikes keys.
func (p *tab) press(keys string) {
	p.t.Helper()
	p.do("press keys", chromedp.KeyEvent(keys))
}

// visit goes to a view by its address, and waits until it is drawn.
func (p *tab) visit(hash string) {
	p.t.Helper()
	value[bool](p, `(location.hash = `+strconv.Quote(hash)+`, true)`)
	p.await(hash+" is drawn", fmt.Sprintf(`location.hash === %q && document.querySelector("main h1") && !document.querySelector("[data-key=wait]")`, hash))
}

// pick chooses a value of a list, as a reader would.
func (p *tab) pick(selector, option string) {
	p.t.Helper()
	value[bool](p, fmt.Sprintf(`(() => { const s = document.querySelector(%q); s.value = %q; return s.dispatchEvent(new Event("change", { bubbles: true })); })()`, selector, option))
}

// signIn gives the form a token.
func (p *tab) signIn(token string) {
	p.t.Helper()
	p.do("sign in", chromedp.WaitVisible(chromedp.CSS("#token")), chromedp.SetValue(chromedp.CSS("#token"), token), chromedp.Click(chromedp.CSS("form button[type=submit]")))
}

// picture saves the whole page, for people to look at, when DIFYLB_PICTURES
// names a directory.
func (p *tab) picture(name string) {
	p.t.Helper()
	p.save(name, chromedp.FullScreenshot(100))
}

func (p *tab) save(name string, shot chromedp.Action[[]byte]) {
	p.t.Helper()
	dir := os.Getenv("DIFYLB_PICTURES")
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	data, err := chromedp.Run(ctx, shot)
	if err == nil {
		data, err = smaller(data)
	}
	err = errors.Join(err, os.MkdirAll(dir, 0o755))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), data, 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// smaller packs a PNG better than the browser takes the time for.
func smaller(data []byte) ([]byte, error) {
	picture, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, picture)
	return out.Bytes(), err
}
