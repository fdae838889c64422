package browser

import (
	"os"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
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
}
