package browser

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// views are all of the page, by their addresses.
var views = []string{"#/", "#/apps", "#/app/" + app, "#/servers", "#/nodes", "#/events", "#/history", "#/access"}

const (
	language = `header select[aria-label="Language"], header select[aria-label="语言"]`
	colours  = `header select[aria-label="Colours"], header select[aria-label="配色"]`
	confirm  = "dialog[open] button[type=submit]"
)

// One cluster and one browser serve all of this: they are what takes time.
func TestDashboard(t *testing.T) {
	chromium(t)
	c := startCluster(t)
	browser := startBrowser(t)
	stop := c.traffic()
	defer stop()
	for _, s := range []struct {
		name string
		run  func(*testing.T, *cluster, *tab)
	}{
		{"SignIn_TellsWrongFromRight", signInTellsWrongFromRight},
		{"Figures_MoveUnderTraffic", figuresMoveUnderTraffic},
		{"Views_AreWholeInEveryLook", viewsAreWholeInEveryLook},
		{"Tables_AreSorted", tablesAreSorted},
		{"Keyboard_Suffices", keyboardSuffices},
		{"Drain_ShowsWhoMovesAndIsSeen", drainShowsWhoMovesAndIsSeen},
		{"Ailing_SaysWhy", ailingSaysWhy},
		{"Rollback_ShowsWhatItDoes", rollbackShowsWhatItDoes},
		{"Refusals_AreSaidInWords", refusalsAreSaidInWords},
		{"Nodes_AreSaidInWords", nodesAreSaidInWords},
		{"Faults_AreShownNeverABlankPage", faultsAreShownNeverABlankPage},
		{"Troubles_AreSaidWithTheirCause", troublesAreSaidWithTheirCause},
		{"Page_WorksBelowAPath", pageWorksBelowAPath},
		{"Viewer_SeesNoActions", viewerSeesNoActions},
		{"LostServer_IsSaidAndFoundAgain", lostServerIsSaidAndFoundAgain},
	} {
		whole := t.Run(s.name, func(t *testing.T) {
			p := openTab(t, browser, c.url)
			c.t = t
			if s.name != "SignIn_TellsWrongFromRight" {
				p.signIn(c.adminToken())
				p.awaitText("h1", "Overview")
			}
			s.run(t, c, p)
			p.clean("in the end")
		})
		c.t = t
		if !whole && s.name == "SignIn_TellsWrongFromRight" {
			t.Fatal("nothing else can be seen")
		}
	}
}

func signInTellsWrongFromRight(t *testing.T, c *cluster, p *tab) {
	if got := value[bool](p, `document.activeElement.id === "token"`); !got {
		t.Error("the field of the token does not have the focus")
	}
	// What the server sends, and that this browser heeds it.
	if policy := value[string](p, `fetch("/").then((r) => r.headers.get("Content-Security-Policy"))`); !strings.HasPrefix(policy, "default-src 'none'; ") {
		t.Errorf("the page has the policy %q", policy)
	}
	p.clean("before the sign-in")
	p.forgive("Content Security Policy")
	if ran := value[bool](p, `(() => { const s = document.createElement("script"); s.text = "window.ran = true"; document.head.append(s); return Boolean(window.ran); })()`); ran {
		t.Error("an inline script ran")
	}
	p.forgive("status of 401")
	p.signIn("lb-wrong")
	p.awaitText(".fault", "does not know this access token")
	p.picture("signin")
	p.signIn(c.adminToken())
	p.awaitText("h1", "Overview")
	if kept := value[[]string](p, `[location.href, document.cookie, JSON.stringify({...localStorage})]`); strings.Contains(strings.Join(kept, " "), c.adminToken()) {
		t.Errorf("the token stands in %q", kept)
	}
	p.do("load the page anew", chromedp.Reload())
	p.awaitText("h1", "Overview")
	p.click("header button.quiet")
	p.do("wait for the form", chromedp.WaitVisible(chromedp.CSS("#token")))
	if left := value[int](p, `sessionStorage.length`); left != 0 {
		t.Errorf("after the sign-out sessionStorage holds %d things", left)
	}
	p.do("load the page anew", chromedp.Reload(), chromedp.WaitVisible(chromedp.CSS("#token")))
}

func figuresMoveUnderTraffic(t *testing.T, _ *cluster, p *tab) {
	const rate = `parseFloat(document.querySelector(".tile b").innerText)`
	p.await("requests per second are counted", rate+` > 1`)
	p.forgive("getImageData") // that it is slow is said of the test's own reading
	p.await("streams are open", `parseInt(document.querySelectorAll(".tile")[2].querySelector("b").innerText) >= 6`)
	total := value[string](p, `document.querySelector(".tile .small").innerText`)
	p.await("the total grows", fmt.Sprintf(`document.querySelector(".tile .small").innerText !== %q`, total))
	for i, name := range []string{"requests", "errors", "open", "latency", "first event", "bytes"} {
		p.await("the plot of "+name+" has a line", fmt.Sprintf(`(%s)(%d) > 20`, drawn, i))
	}
	// The longest axis is the reader's choice, and a cursor over one plot tells the figures of all.
	p.await("the axis is five minutes at most", `document.querySelector(".segments [aria-pressed=true]").innerText === "5 min"`)
	p.click(".segments button")
	p.await("now a minute", `document.querySelector(".segments [aria-pressed=true]").innerText === "1 min"`)
	p.await("the plots are still drawn", fmt.Sprintf(`(%s)(0) > 20`, drawn))
	at := value[[]float64](p, `(() => { const b = document.querySelector(".u-over").getBoundingClientRect(); return [b.right - 8, b.top + b.height / 2]; })()`)
	p.do("point at a plot", func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: "mouseMoved", X: at[0], Y: at[1]})
		return chromedp.Void{}, err
	})
	p.await("all plots tell the time pointed at", `document.querySelectorAll(".plot figcaption time").length === document.querySelectorAll(".plot").length`)
	p.picture("hover")
}

// drawn counts the columns of a plot's canvas that hold a coloured line; axes
// and words are grey.
const drawn = `(i) => {
  const c = document.querySelectorAll(".plot canvas")[i];
  if (!c?.width) return 0;
  const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
  const columns = new Set();
  for (let at = 0; at < data.length; at += 4) {
    const [r, g, b, a] = data.subarray(at, at + 4);
    if (a > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 80) columns.add((at / 4) % c.width);
  }
  return columns.size;
}`

// A view that fails says so in its place, and works again; so does the page
// whose script never came.
func faultsAreShownNeverABlankPage(t *testing.T, c *cluster, p *tab) {
	p.forgive("console: error", "Cannot read properties")
	p.played(`/nodes\?`, 200, `{"items":[null]}`)
	p.visit("#/nodes")
	p.awaitText(".broken h1", "This view cannot be shown")
	p.awaitText(".broken .fault", "The page failed: Cannot read properties of null")
	if n := p.count("nav a"); n != 7 {
		t.Errorf("beside the fault there are %d sections", n)
	}
	p.picture("broken")
	p.visit("#/history")
	p.awaitText("h1", "History")
	p.visit("#/nodes")
	p.awaitText(".broken h1", "This view cannot be shown")
	p.unplayed()
	p.click(".broken button")
	p.awaitText(`tr[data-key="proxy-1"] .pill`, "ok")
	// What fails outside of drawing.
	p.forgive("out of the blue")
	value[bool](p, `(setTimeout(() => { throw new Error("out of the blue"); }), true)`)
	p.awaitText(".banner.bad", "The page failed: out of the blue")
	p.click(".banner.bad button")
	p.awaitNone(".banner.bad")

	p.forgive("ERR_BLOCKED_BY_CLIENT", "failed:  inspector")
	p.do("withhold the script", func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		if _, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{}); err != nil {
			return chromedp.Void{}, err
		}
		_, err := cdp.Call(ctx, target, network.SetBlockedURLs, network.SetBlockedURLsParams{URLPatterns: []*network.BlockPattern{{URLPattern: "*://*:*/*.js", Block: true}}})
		return chromedp.Void{}, err
	}, chromedp.Reload())
	p.await("the page says that its script did not start", `document.querySelector(".unstarted")?.checkVisibility({ visibilityProperty: true }) && document.body.innerText.includes("The script of this page did not start")`)
}

func tablesAreSorted(_ *testing.T, _ *cluster, p *tab) {
	p.visit("#/apps")
	const first = `document.querySelector("tbody tr").dataset.key`
	p.await("by name at first", first+` === "reports"`)
	p.click(`th:nth-of-type(7) button`)
	p.await("the most requests first", first+` === "support" && document.querySelector("th[aria-sort]").getAttribute("aria-sort") === "descending"`)
	p.click(`th:nth-of-type(7) button`)
	p.await("the fewest requests first", first+` === "reports" && document.querySelector("th[aria-sort]").getAttribute("aria-sort") === "ascending"`)
	p.do("filter", chromedp.SendKeys(chromedp.CSS("input[type=search]"), "supp"))
	p.await("only what is looked for", `document.querySelectorAll("tbody tr").length === 1 && `+first+` === "support"`)
}

// looks are all in which the page must be whole.
var looks = []struct {
	language, theme string
	width           int64
}{
	{"en", "light", 1280}, {"en", "dark", 1280}, {"zh", "light", 1280}, {"zh", "dark", 390}, {"en", "light", 390},
}

func viewsAreWholeInEveryLook(t *testing.T, _ *cluster, p *tab) {
	for _, look := range looks {
		p.do("resize", chromedp.EmulateViewport(look.width, 900))
		p.pick(language, look.language)
		p.pick(colours, look.theme)
		for _, view := range append(views, "#/change/"+newestChange(p)) {
			where := fmt.Sprintf("%s in %s, %s, %d px", view, look.language, look.theme, look.width)
			p.visit(view)
			p.await(where+": figures are there", `!document.querySelector("main").innerText.includes(document.documentElement.lang === "en" ? "Reading …" : "正在读取")`)
			if got := value[string](p, `getComputedStyle(document.documentElement).colorScheme`); got != look.theme {
				t.Errorf("%s: the colours are %q", where, got)
			}
			for _, fault := range value[[]string](p, inspection) {
				t.Errorf("%s: %s", where, fault)
			}
			p.clean(where)
			p.picture(fmt.Sprintf("%s-%s-%d-%s", look.language, look.theme, look.width, strings.Trim(strings.ReplaceAll(view, "/", "-"), "#-")))
		}
	}
	p.pick(language, "en")
	p.pick(colours, "auto")
	p.do("let the system choose dark", func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}}})
		return chromedp.Void{}, err
	})
	if dark := value[string](p, `getComputedStyle(document.body).backgroundColor`); dark != "rgb(13, 15, 19)" {
		t.Errorf("by the system's wish for dark the page is %s", dark)
	}
}

// newestChange is the revision that the history shows first.
func newestChange(p *tab) string {
	p.t.Helper()
	p.visit("#/history")
	p.await("the history is there", `document.querySelector("main tbody a")`)
	return p.text("main tbody a")
}

// inspection lists what is wrong with the picture, whatever it shows.
const inspection = `(() => {
  const faults = [];
  const say = (what, e) => faults.push(what + ": " + e.outerHTML.slice(0, 160));
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) {
    faults.push("it is " + root.scrollWidth + " px wide in a window of " + innerWidth);
    for (const e of document.querySelectorAll("body *")) if (e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, nav, pre")) say("too wide", e);
  }
  const here = document.querySelector("nav [aria-current]").getBoundingClientRect();
  if (here.left < 0 || here.right > innerWidth) faults.push("the name of the section is out of sight");
  if (document.querySelectorAll("h1").length !== 1) faults.push("it has not one heading of the first rank");
  if (document.querySelector("main .fault[role=alert]")) say("a fault is shown", document.querySelector("main .fault[role=alert]"));
  for (const e of document.querySelectorAll("table")) {
    if (!e.getAttribute("aria-label") || e.querySelectorAll("thead th[scope=col]").length !== e.querySelector("tbody tr").cells.length) say("a table without a name or heads", e);
  }
  for (const e of document.querySelectorAll("button, a, select, input")) {
    if (!(e.getAttribute("aria-label") || e.innerText || e.labels?.length)) say("no name", e);
  }
  for (const e of document.querySelectorAll("[role=img]")) if (!e.getAttribute("aria-label")) say("no name", e);
  if (/\{\w+\}|undefined|\bnull\b|NaN|\[object/.test(document.body.innerText.replace(document.querySelector("pre")?.innerText ?? "", ""))) faults.push("it says: " + document.body.innerText.match(/.*(\{\w+\}|undefined|\bnull\b|NaN|\[object).*/)?.[0]);
  const rgb = (c) => c.match(/[\d.]+/g).map(Number);
  const luminance = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((n, v, i) => n + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  for (const e of document.querySelectorAll("body *")) {
    if (e.disabled || e.closest("svg, option, noscript, .canvas") || ![...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()) || !e.checkVisibility()) continue;
    const [a, b] = [luminance(rgb(getComputedStyle(e).color)), luminance(behind(e))].sort((x, y) => y - x);
    // WCAG 2.2, 1.4.3; nothing here is so large that 3 would do.
    if ((a + 0.05) / (b + 0.05) < 4.5) say("contrast " + ((a + 0.05) / (b + 0.05)).toFixed(1), e);
  }
  // What the server says is marked as English, and names are one word: two words of English in a row are a text that was not translated.
  if (root.lang === "zh-CN") {
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const node = walk.currentNode;
      if (/[A-Za-z]{2,} [A-Za-z]{2,}/.test(node.data) && !node.parentElement.closest("[lang=en], noscript, select") && !/lbctl/.test(node.data)) say("not in Chinese", node.parentElement);
    }
  } else if (/\p{Script=Han}/u.test(document.querySelector("main").innerText)) faults.push("it has Chinese words in English");
  return faults;
})()`

func keyboardSuffices(t *testing.T, _ *cluster, p *tab) {
	p.visit("#/app/" + app)
	value[bool](p, `(document.activeElement.blur(), true)`)
	seen := map[string]bool{}
	for range 60 {
		p.press(kb.Tab)
		at := value[[]string](p, `(() => { const e = document.activeElement; return [e.getAttribute("aria-label") ?? e.innerText ?? "", e === document.body || getComputedStyle(e).outlineStyle !== "none" ? "" : e.outerHTML.slice(0, 120)]; })()`)
		if at[1] != "" {
			t.Errorf("the focus cannot be seen on %s", at[1])
		}
		seen[at[0]] = true
	}
	for _, must := range []string{"Skip to the content", "Applications", "Access", "Language", "Sign out", "Drain dify1", "Disable dify3", "Where does this user go?"} {
		if !seen[must] {
			t.Errorf("the tabulator key does not reach %q", must)
		}
	}
	p.do("focus the button", chromedp.Focus(chromedp.CSS(`button[aria-label="Drain dify1"]`)))
	p.press(kb.Enter)
	p.awaitText("dialog[open] h2", "Drain support/dify1?")
	for range 8 {
		p.press(kb.Tab)
		if value[bool](p, `document.activeElement !== document.body && !document.activeElement.closest("dialog")`) {
			t.Fatal("the focus leaves the dialog")
		}
	}
	p.press(kb.Escape)
	p.awaitNone("dialog")
	if at := value[string](p, `document.activeElement.getAttribute("aria-label") ?? ""`); at != "Drain dify1" {
		t.Errorf("after the dialog the focus is on %q", at)
	}
}

func drainShowsWhoMovesAndIsSeen(t *testing.T, c *cluster, p *tab) {
	c.awaitUsers()
	p.visit("#/app/" + app)
	p.click(`button[aria-label="Drain dify2"]`)
	p.awaitText("dialog[open]", "Other usable instances: 2")
	p.await("the preview says who moves", `/support: [\d.]+% of the users go to another instance/.test(document.querySelector("dialog[open]").innerText)`)
	p.await("and where to", `/dify2 → dify[13]\s+[\d.]+%/.test(document.querySelector("dialog[open]").innerText)`)
	p.awaitText("dialog[open]", "users seen within the last day")
	p.picture("drain")
	p.click(confirm)
	p.awaitText(".toast", "support/dify2 is draining")
	p.awaitText(`tr[data-key="dify2"] .pill`, "draining")
	p.visit("#/")
	p.awaitText("main", "draining")
	p.visit("#/events")
	p.awaitText(".feed", "instance support/dify2 changed")
	c.lbctl("export", "--secrets")
	p.awaitText(".feed", "admin@admin-1 exported the configuration with secrets")
	p.pick(`main select`, "export.secrets")
	p.await("only what is asked for", `document.querySelectorAll(".feed li").length === 1`)
	p.visit("#/app/" + app)
	p.click(`button[aria-label="Activate dify2"]`)
	p.awaitText("dialog[open] h2", "Activate support/dify2?")
	p.await("the preview names whence they come", `/dify[13] → dify2\s+[\d.]+%/.test(document.querySelector("dialog[open]").innerText)`)
	p.click(confirm)
	p.awaitText(`tr[data-key="dify2"] .pill`, "healthy")
}

func ailingSaysWhy(t *testing.T, c *cluster, p *tab) {
	p.awaitText("main", "All instances are healthy.")
	c.quiet.T = t
	c.quiet.Kill()
	const row = `tr[data-key="reports/dify4"]`
	p.awaitText(row+" .pill", "unhealthy")
	p.await("the overview says who found what", fmt.Sprintf(`/probe by admin-1, .*refused/.test(document.querySelector(%q).innerText)`, row))
	p.awaitText(".feed", "reports / dify4")
	p.awaitText(".tile.bad", "Usable instances")
	p.visit("#/app/" + other)
	p.await("so does the application", `/unhealthy[^]*probe by admin-1, .*refused/.test(document.querySelector('tr[data-key="dify4"]').innerText)`)
	c.quiet = c.quiet.Again()
	p.awaitText(`tr[data-key="dify4"] .pill`, "healthy")
	p.visit("#/")
	p.awaitText("main", "All instances are healthy.")
}

func rollbackShowsWhatItDoes(t *testing.T, c *cluster, p *tab) {
	before := newestChange(p)
	c.apply(2)
	p.await("the history has the change by itself", fmt.Sprintf(`document.querySelector("main tbody a").innerText !== %q`, before))
	changed := p.text("main tbody a")
	p.click("main tbody a")
	p.awaitText("main", "instance support/dify3 deleted")
	p.visit("#/app/" + app)
	p.awaitNone(`tr[data-key="dify3"]`)
	p.visit("#/change/" + before)
	p.click(`main .head button`)
	p.awaitText("dialog[open] h2", "Return to revision "+before)
	p.await("the preview says who moves", `/support: [\d.]+% of the users go to another instance/.test(document.querySelector("dialog[open]").innerText)`)
	p.await("and where to", `/dify1 → dify3\s+[\d.]+%/.test(document.querySelector("dialog[open]").innerText)`)
	p.awaitText("dialog[open]", "instance support/dify3 created")
	p.picture("rollback")
	p.click(confirm)
	p.awaitText(".toast", "The configuration is again as at revision "+before)
	p.await("the new change is shown", fmt.Sprintf(`/^#\/change\/\d+$/.test(location.hash) && location.hash !== "#/change/%s" && location.hash !== "#/change/%s"`, before, changed))
	p.visit("#/app/" + app)
	p.awaitText(`tr[data-key="dify3"] .pill`, "healthy")
}

// played answers calls whose address fits the pattern in place of the server.
func (p *tab) played(path string, status int, body string) {
	p.t.Helper()
	value[bool](p, fmt.Sprintf(`(() => {
	  window.honest ??= window.fetch;
	  window.fetch = (url, options) => new RegExp(%q).test(url) ? Promise.resolve(new Response(%q, { status: %d })) : window.honest(url, options);
	  return true;
	})()`, path, body, status))
}

func (p *tab) unplayed() { value[bool](p, `(window.fetch = window.honest, true)`) }

func refusalsAreSaidInWords(t *testing.T, c *cluster, p *tab) {
	p.forgive("status of 404", "status of 412")
	p.visit("#/app/" + app)
	for _, c := range []struct {
		status int
		body   string
		says   []string
	}{
		{403, `{"status":403,"detail":"this needs the role operator"}`, []string{"role of your access token does not allow", "this needs the role operator"}},
		{409, `{"status":409,"detail":"others kept changing it"}`, []string{"nothing was changed", "others kept changing it"}},
		{412, `{"status":412,"detail":"it is at revision 9"}`, []string{"Someone changed it meanwhile", "it is at revision 9"}},
		{422, `{"status":422,"detail":"2 faults; nothing was changed","faults":[{"path":"a.b","message":"is wrong"},{"path":"a.c","message":"is missing"}]}`, []string{"is faulty", "a.b: is wrong", "a.c: is missing"}},
		{503, `{"status":503,"detail":"etcd does not answer"}`, []string{"cannot do this at the moment", "etcd does not answer"}},
		{418, `not JSON`, []string{"status 418"}},
	} {
		p.played("/drain$", c.status, c.body)
		p.click(`button[aria-label="Drain dify1"]`)
		p.click(confirm)
		for _, text := range c.says {
			p.awaitText("dialog[open] .fault", text)
		}
		p.press(kb.Escape)
		p.awaitNone("dialog")
	}
	// A preview that can't be had is said, and hinders nobody in an emergency.
	p.played(`/drain\?dry_run`, 503, `{"status":503,"detail":"etcd does not answer"}`)
	p.click(`button[aria-label="Drain dify1"]`)
	p.awaitText("dialog[open] .preview .fault", "etcd does not answer")
	if !value[bool](p, fmt.Sprintf(`!document.querySelector(%q).disabled`, confirm)) {
		t.Error("without a preview nothing can be drained")
	}
	p.press(kb.Escape)
	p.awaitNone("dialog")
	p.unplayed()
	// And one that is none of ours: somebody was faster.
	p.click(`button[aria-label="Drain dify1"]`)
	p.awaitText("dialog[open] h2", "Drain")
	c.lbctl("instance", "set", app, "dify1", "--weight", "2")
	p.click(confirm)
	p.awaitText("dialog[open] .fault", "Someone changed it meanwhile")
	p.press(kb.Escape)
	p.visit("#/app/no-such-application")
	p.awaitText("main", "There is no application of this name")
	p.visit("#/change/1")
	p.awaitText(".fault", "There is no such thing.")
	c.lbctl("instance", "set", app, "dify1", "--weight", "1")
}

func nodesAreSaidInWords(_ *testing.T, _ *cluster, p *tab) {
	p.visit("#/nodes")
	p.awaitText(`tr[data-key="proxy-1"] .pill`, "ok")
	p.awaitText("main", "All proxies place every user alike.")
	var items []string
	for _, state := range []string{"ok", "behind", "ring_differs", "refused", "held_back", "disconnected"} {
		items = append(items, fmt.Sprintf(`{"id":%q,"role":"proxy","state":%q,"address":"127.0.0.1:1","config_revision":7,"lag_seconds":3,"uptime_seconds":9,"version":"dev"%s}`,
			state, state, map[string]string{"held_back": `,"held_back":true,"refused":"it would remove all","refused_revision":9,"refused_epoch":"e"`, "refused": `,"refused":"too large","refused_revision":9`}[state]))
	}
	p.played(`/nodes\?`, 200, `{"items":[`+strings.Join(items, ",")+`]}`)
	for state, text := range map[string]string{"behind": "behind", "ring_differs": "ring differs", "refused": "refused", "held_back": "held back", "disconnected": "disconnected"} {
		p.awaitText(fmt.Sprintf(`tr[data-key=%q] .pill`, state), text)
	}
	p.picture("nodes")
	p.played("/accept$", 409, `{"status":409,"detail":"proxy \"held_back\" holds nothing back any more"}`)
	p.click(`button[aria-label="Accept … held_back"]`)
	p.awaitText("dialog[open]", "it would remove all")
	p.click(confirm)
	p.awaitText("dialog[open] .fault", "holds nothing back any more")
	p.press(kb.Escape)
	p.unplayed()
}

// A Status document in which much is amiss.
const troubles = `{"status":"running","revision":9,"complete":false,"nodes":{"proxies":3,"admins":1,"reporting":2},
  "refusing":[{"node":"proxy-2","revision":7,"refused_revision":9,"reason":"it would remove all","held_back":true},
    {"node":"proxy-3","revision":8,"refused_revision":9,"reason":"too large","held_back":false}],
  "applications":{"support":{"total_requests":10,"errors":4,"active":1,"latency_recent":{"p50":0,"p99":0},"first_byte_recent":{"p50":0,"p99":0},"instances":{
    "dify1":{"requests":10,"errors":4,"retries":0,"active":1,"streams":0,"status":"ejected","state":"active","bytes_in":1,"bytes_out":1,"since":"2026-01-02T03:04:05Z",
      "latency_recent":{"p50":0,"p99":0},"first_byte_recent":{"p50":0,"p99":0},"ejected_by":["proxy-2","proxy-7"],
      "last_error":{"reason":"upstream_timeout","time":"2026-01-02T03:04:04Z"},
      "last_probe":{"time":"2026-01-02T03:04:06Z","duration_ms":12,"verdict":"pass","found":"status 200","by":"admin-9"}},
    "dify2":{"requests":0,"errors":0,"retries":0,"active":0,"streams":0,"status":"a-new-word","state":"active","bytes_in":0,"bytes_out":0,"since":"2026-01-02T03:04:05Z","last_error":null}}}}}`

func troublesAreSaidWithTheirCause(_ *testing.T, _ *cluster, p *tab) {
	p.played("/status$", 200, troubles)
	p.awaitText(".banner", "proxy-2 keeps revision 7 in force and holds back 9 until an admin accepts it: it would remove all")
	p.awaitText(".banner", "proxy-3 keeps revision 8 in force and refuses 9: too large")
	p.awaitText(".banner", "2 of 3 proxies report")
	const row = `tr[data-key="support/dify1"]`
	p.awaitText(row+" .pill", "ejected")
	for _, text := range []string{"since Jan 2, 2026", "kept out by proxy-2, proxy-7", "last error: timeout, Jan 2, 2026", "probe by admin-9, Jan 2, 2026", "12 ms: status 200"} {
		p.awaitText(row, text)
	}
	p.awaitText(`tr[data-key="support/dify2"] .pill`, "a-new-word")
	p.picture("troubles")
	p.unplayed()
	p.awaitNone(".banner")
	p.awaitNone(row)
}

// A reverse proxy that takes a path away: nothing may be asked for beside it.
func pageWorksBelowAPath(t *testing.T, c *cluster, p *tab) {
	lb, err := url.Parse(c.url)
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(http.StripPrefix("/ops/difylb", httputil.NewSingleHostReverseProxy(lb)))
	t.Cleanup(front.Close)
	below := openTab(t, p.ctx, front.URL+"/ops/difylb")
	below.signIn(c.adminToken())
	below.awaitText("h1", "Overview")
	below.visit("#/app/" + app)
	below.awaitText(`tr[data-key="dify1"] .pill`, "healthy")
	below.visit("#/events")
	below.awaitText(".feed", "The stream begins")
	below.clean("below a path")
	// The tab goes before the server that it holds a connection to.
	below.do("leave", chromedp.Navigate("about:blank"))
}

func viewerSeesNoActions(t *testing.T, c *cluster, p *tab) {
	p.visit("#/access")
	p.awaitText("main", "you are signed in with it")
	p.click(`main .head button.primary`)
	p.do("name it", chromedp.SendKeys(chromedp.CSS("#access-name"), "guest"))
	p.click(confirm)
	p.do("wait for the token", chromedp.WaitVisible(chromedp.CSS("dialog input.secret")))
	token := value[string](p, `document.querySelector("dialog input.secret").value`)
	if !strings.HasPrefix(token, "lb-") {
		t.Fatalf("the new token is %.3q…", token)
	}
	p.press(kb.Escape)
	p.awaitNone("dialog")
	p.awaitText("tbody", "guest")
	if strings.Contains(value[string](p, `document.documentElement.outerHTML`), token) {
		t.Error("the token is still in the page")
	}
	p.click("header button.quiet")
	p.signIn(token)
	p.awaitText("header .badge", "viewer")
	for _, view := range append(views, "#/change/"+newestChange(p)) {
		p.visit(view)
		p.await(view+" has figures", `document.querySelector("main").innerText.length > 60`)
		if n := p.count(`main .head button, main td button, main button.primary, main button.danger`); n > 0 {
			t.Errorf("%s: a viewer sees %d actions", view, n)
		}
	}
	// The token is taken away: the page says so, by itself.
	p.forgive("status of 401")
	c.lbctl("access", "rm", "guest")
	p.awaitText(".fault", "not valid any more")
}

func lostServerIsSaidAndFoundAgain(t *testing.T, c *cluster, p *tab) {
	p.visit("#/app/" + app)
	p.awaitText("main", "dify1")
	c.admin.T = t
	p.forgive("net::ERR_", "status of 503")
	c.admin.Kill()
	p.awaitText(".banner.bad", "Connection lost")
	if text := p.text("main"); !strings.Contains(text, "dify1") || !strings.Contains(text, "Requests per second") {
		t.Errorf("the page has gone with the server; it says:\n%s", text)
	}
	p.visit("#/history")
	p.awaitText(".fault", "The server does not answer.")
	p.picture("lost")
	c.admin = c.admin.Again()
	c.awaitAdmin()
	p.awaitNone(".banner.bad")
	p.await("the history comes by itself", `document.querySelector("main tbody a") && !document.querySelector("main .fault")`)
	p.visit("#/")
	p.await("figures move again", `parseFloat(document.querySelector(".tile b").innerText) > 1`)
}
