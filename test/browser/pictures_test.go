package browser

import (
	"os"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// The pictures of docs/images, after a minute of traffic:
//
//	DIFYLB_PICTURES=$PWD/docs/images go test -run Pictures ./test/browser
func TestPictures_OfTheDocs(t *testing.T) {
	if os.Getenv("DIFYLB_PICTURES") == "" {
		t.Skip("DIFYLB_PICTURES names no directory")
	}
	chromium(t)
	c := startCluster(t)
	browser := startBrowser(t)
	p := openTab(t, browser, c.url)
	p.signIn(c.adminToken())
	p.awaitText("h1", "Overview")
	stop := c.traffic()
	defer stop()
	time.Sleep(25 * time.Second)
	wave := c.traffic()
	time.Sleep(12 * time.Second)
	wave()
	c.lbctl("instance", "drain", app, "dify2")
	time.Sleep(22 * time.Second)
	for _, look := range []struct {
		name, theme   string
		width, height int64
	}{{"dashboard-light", "light", 1280, 960}, {"dashboard-dark", "dark", 1280, 960}, {"dashboard-narrow", "light", 390, 844}} {
		p.do("resize", chromedp.EmulateViewport(look.width, look.height))
		p.pick(colours, look.theme)
		p.awaitText("main", "draining")
		p.save(look.name, chromedp.CaptureScreenshot())
	}
	p.do("resize", chromedp.EmulateViewport(1280, 960))
	p.visit("#/app/" + app)
	p.awaitText("main", "draining")
	p.save("dashboard-application", chromedp.CaptureScreenshot())
	p.click(`button[aria-label="Drain dify1"]`)
	p.awaitText("dialog[open]", "of the users go to another instance")
	p.save("dashboard-drain", chromedp.CaptureScreenshot())
	p.press(kb.Escape)
}
