package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// A client sends signed requests over connections it keeps. The floor gets the same
// requests, signature and all, though it looks at none of it.
type client struct {
	signer    *v4.Signer
	keys      aws.Credentials
	region    string
	transport *http.Transport
}

func newClient(s *server) *client {
	c := &client{signer: v4.NewSigner(), region: "us-east-1", keys: aws.Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "none"}}
	if s != nil {
		c.keys, c.region = s.keys, s.region
	}
	c.transport = &http.Transport{MaxIdleConns: 1000, MaxIdleConnsPerHost: 1000, DisableCompression: true}
	return c
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// do sends one request; the caller closes the answer's body.
func (c *client) do(ctx context.Context, method, url string, body []byte) (*http.Response, error) {
	req, err := c.request(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	return c.transport.RoundTrip(req)
}

// request is a signed request.
func (c *client) request(ctx context.Context, method, url string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	sum := sha256.Sum256(body)
	return req, c.signer.SignHTTP(ctx, c.keys, req, hex.EncodeToString(sum[:]), "lambda", c.region, time.Now())
}

// answer is what the probe says.
type answer struct {
	Started int64  `json:"started"`
	Echo    string `json:"echo"`
}

// errThrottled says that the server wants fewer requests.
var errThrottled = errors.New("throttled")

// invoke sends an event and checks that its own answer comes back. It returns how
// long that took, from the signed request to the last byte.
func (c *client) invoke(ctx context.Context, url, echo string, sleep time.Duration) (answer, time.Duration, error) {
	var a answer
	text, took, err := c.send(ctx, url, fmt.Appendf(nil, `{"echo":%q,"sleepMs":%d}`, echo, sleep.Milliseconds()))
	if err == nil {
		if err = json.Unmarshal(text, &a); err != nil || a.Echo != echo {
			err = fmt.Errorf("invoking %s: it answers %s", url, text)
		}
	}
	return a, took, err
}

// send sends an event and returns the answer of a function that did not fail.
func (c *client) send(ctx context.Context, url string, event []byte) ([]byte, time.Duration, error) {
	req, err := c.request(ctx, "POST", url, event)
	if err != nil {
		return nil, 0, err
	}
	begin := time.Now()
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	text.Grow(max(int(resp.ContentLength), 0) + bytes.MinRead)
	_, err = text.ReadFrom(resp.Body)
	took := time.Since(begin)
	switch {
	case err != nil:
		return nil, 0, err
	case resp.StatusCode == http.StatusTooManyRequests:
		return nil, 0, errThrottled
	case resp.StatusCode != http.StatusOK || resp.Header.Get("X-Amz-Function-Error") != "":
		return nil, 0, fmt.Errorf("invoking %s: %s %.1000s", url, resp.Status, text.Bytes())
	}
	return text.Bytes(), took, nil
}
