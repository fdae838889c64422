package e2e

import (
	"net/http"
	"testing"
)

// Scripts wait for /readyz and then use the token that the first start wrote.
func TestStart_ReadyMeansTheTokenOpensTheAPI(t *testing.T) {
	t.Parallel()
	for range 3 {
		c := newCluster(t)
		c.beginAdmin().awaitReady()
		if code, _, err := c.call("GET", "/nodes", nil); err != nil || code != http.StatusOK {
			t.Errorf("lb-admin is ready, and its token gets %d, %v", code, err)
		}
	}
}
