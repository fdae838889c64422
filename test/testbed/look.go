package testbed

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Visitor is the certificate that Trusting shows to servers that ask for one;
// nil: none.
var Visitor atomic.Pointer[tls.Certificate]

// Trusting is for looking at processes of the test itself, whatever is wrong
// with their certificates.
var Trusting = &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if c := Visitor.Load(); c != nil {
		return c, nil
	}
	return new(tls.Certificate), nil
}}

// Looker is the client of Get: short of patience and without kept connections.
var Looker = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: Trusting}}

// Get asks an open URL.
func Get(url string) (status int, body []byte, err error) {
	resp, err := Looker.Get(url)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// Probe returns nil when the URL answers 200.
func Probe(url string) error {
	status, body, err := Get(url)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: %d %s", url, status, bytes.TrimSpace(body))
	}
	return err
}

// Metric sums a metric at base/metrics over the series whose labels contain all
// of those given; 0 when there is none.
func Metric(base, name string, labels ...string) (sum float64, err error) {
	code, body, err := Get(base + "/metrics")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("status %d", code)
	}
	if err != nil {
		return 0, fmt.Errorf("metrics: %w", err)
	}
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || (rest[0] != '{' && rest[0] != ' ') {
			continue
		}
		if slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			continue
		}
		var v float64
		if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}
