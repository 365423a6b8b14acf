package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	sum := sha256.Sum256(body)
	if err := c.signer.SignHTTP(ctx, c.keys, req, hex.EncodeToString(sum[:]), "lambda", c.region, time.Now()); err != nil {
		return nil, err
	}
	return c.transport.RoundTrip(req)
}

// answer is what the probe says.
type answer struct {
	Started int64  `json:"started"`
	Echo    string `json:"echo"`
}

// errThrottled says that the server wants fewer requests.
var errThrottled = errors.New("throttled")

// invoke sends an event and checks that its own answer comes back. It returns how
// long that took, from before the signing to the last byte.
func (c *client) invoke(ctx context.Context, url, echo string, sleep time.Duration) (answer, time.Duration, error) {
	body := fmt.Appendf(nil, `{"echo":%q,"sleepMs":%d}`, echo, sleep.Milliseconds())
	begin := time.Now()
	resp, err := c.do(ctx, "POST", url, body)
	if err != nil {
		return answer{}, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	took := time.Since(begin)
	if err != nil {
		return answer{}, 0, err
	}
	if resp.StatusCode == http.StatusTooManyRequests {
		return answer{}, 0, errThrottled
	}
	var a answer
	if err := json.Unmarshal(text, &a); err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("X-Amz-Function-Error") != "" || a.Echo != echo {
		return answer{}, 0, fmt.Errorf("invoking %s: %s %s", url, resp.Status, text)
	}
	return a, took, nil
}
