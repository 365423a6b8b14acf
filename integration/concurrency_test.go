package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"github.com/lambdad/lambdad/integration/harness"
)

// TestConcurrency is what the fifth issue promises of concurrency, in real
// sandboxes, and that all of it survives kill -9.
func TestConcurrency(t *testing.T) {
	harness.NeedRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir := t.TempDir()
	args := []string{"--log-level", "warn", "--wait-limit", "60s"}
	s := harness.Start(t, dir, args...)
	reserved(ctx, t, s)
	provisioned(ctx, t, s)
	ids := enqueue(ctx, t, s)
	s.Kill()

	s = harness.Start(t, dir, args...)
	out, err := s.Client.GetFunctionConcurrency(ctx, &lambda.GetFunctionConcurrencyInput{FunctionName: aws.String("limited")})
	if err != nil || aws.ToInt32(out.ReservedConcurrentExecutions) != limit {
		t.Errorf("reserved after kill -9: %v %v", out, err)
	}
	awaitProvisioned(ctx, t, s, types.ProvisionedConcurrencyStatusEnumReady)
	firstAndNext(ctx, t, s)
	executed(ctx, t, dir, ids)
	s.Stop()
	harness.LeftOnHost(t, s.ID)
}

const (
	limit = 10
	ahead = 3
)

// reserved: of 500 parallel calls none is over the limit and none is lost.
func reserved(ctx context.Context, t *testing.T, s *harness.Server) {
	t.Helper()
	if err := s.Create(ctx, "limited", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.PutFunctionConcurrency(ctx, &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("limited"), ReservedConcurrentExecutions: aws.Int32(limit)}); err != nil {
		t.Fatal(err)
	}
	ok, throttled := limited(ctx, t, s, 500, `{"sleepMs": 1500}`)
	t.Logf("500 parallel calls with %d reserved: %d answered, %d throttled", limit, ok, throttled)
	if ok < limit || ok+throttled != 500 {
		t.Errorf("%d answered and %d throttled", ok, throttled)
	}
	// An environment runs one invocation at a time and none has been retired, so
	// there never were more at once than there are environments.
	list, err := s.Environments(ctx)
	if err != nil || len(list) > limit {
		t.Errorf("%d environments, %v", len(list), err)
	}
	// All of it can be had again, once every environment is free.
	s.WaitEnvironments(20*time.Second, func(list []harness.State) bool {
		return !slices.ContainsFunc(list, func(e harness.State) bool { return e.State != "idle" && e.State != "frozen" })
	})
	if ok, throttled := limited(ctx, t, s, limit, `{"sleepMs": 300}`); ok != limit {
		t.Errorf("%d throttled of as many as are reserved", throttled)
	}
}

// limited invokes n times at once.
func limited(ctx context.Context, t *testing.T, s *harness.Server, n int, event string) (ok, throttled int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			_, err := s.Invoke(ctx, "limited", event)
			var busy *types.TooManyRequestsException
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				ok++
			case errors.As(err, &busy) && busy.Reason == types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded:
				throttled++
			default:
				t.Errorf("neither an answer nor a throttle: %v", err)
			}
		})
	}
	wg.Wait()
	return ok, throttled
}

// provisioned: environments are initialised ahead, and one that is killed is seen to
// be missing until it is replaced.
func provisioned(ctx context.Context, t *testing.T, s *harness.Server) {
	t.Helper()
	if err := s.Create(ctx, "ahead", nil); err != nil {
		t.Fatal(err)
	}
	name := aws.String("ahead")
	v, err := s.Client.PublishVersion(ctx, &lambda.PublishVersionInput{FunctionName: name})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Client.CreateAlias(ctx, &lambda.CreateAliasInput{FunctionName: name, Name: aws.String("live"), FunctionVersion: v.Version}); err != nil {
		t.Fatal(err)
	}
	put, err := s.Client.PutProvisionedConcurrencyConfig(ctx, &lambda.PutProvisionedConcurrencyConfigInput{
		FunctionName: name, Qualifier: aws.String("live"), ProvisionedConcurrentExecutions: aws.Int32(ahead),
	})
	if err != nil || put.Status != types.ProvisionedConcurrencyStatusEnumInProgress {
		t.Fatalf("%v %v", put, err)
	}
	awaitProvisioned(ctx, t, s, types.ProvisionedConcurrencyStatusEnumReady)
	account, err := s.Client.GetAccountSettings(ctx, &lambda.GetAccountSettingsInput{})
	if err != nil || *account.AccountLimit.UnreservedConcurrentExecutions != 1000-limit-ahead {
		t.Errorf("account: %+v %v", account, err)
	}
	if mounts, _ := os.ReadFile("/proc/self/mounts"); strings.Contains(string(mounts), " cgroup2 ") { // the v1 freezer keeps what was killed alive until it thaws
		killOne(t, s)
		awaitProvisioned(ctx, t, s, types.ProvisionedConcurrencyStatusEnumInProgress)
		awaitProvisioned(ctx, t, s, types.ProvisionedConcurrencyStatusEnumReady)
	}
	firstAndNext(ctx, t, s)
}

// killOne kills the runtime of one provisioned environment.
func killOne(t *testing.T, s *harness.Server) {
	t.Helper()
	for pid := range harness.ProcessStates(t, s.ID) {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err == nil && strings.Contains(string(env), "AWS_LAMBDA_INITIALIZATION_TYPE=provisioned-concurrency") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no process that was initialised ahead was found")
}

func awaitProvisioned(ctx context.Context, t *testing.T, s *harness.Server, want types.ProvisionedConcurrencyStatusEnum) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		got, err := s.Client.GetProvisionedConcurrencyConfig(ctx, &lambda.GetProvisionedConcurrencyConfigInput{FunctionName: aws.String("ahead"), Qualifier: aws.String("live")})
		if err != nil {
			t.Fatal(err)
		}
		missing := *got.RequestedProvisionedConcurrentExecutions - *got.AvailableProvisionedConcurrentExecutions
		if got.Status == want && (missing == 0) == (want == types.ProvisionedConcurrencyStatusEnumReady) {
			return
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("status %s with %d missing, want %s", got.Status, missing, want)
		}
	}
}

// firstAndNext: the first parallel invocations, as many as are provisioned, find
// processes that were there, and the next one starts one.
func firstAndNext(ctx context.Context, t *testing.T, s *harness.Server) {
	t.Helper()
	begin := time.Now().UnixMilli()
	var mu sync.Mutex
	var wg sync.WaitGroup
	before, after := 0, 0
	for range ahead + 1 {
		wg.Go(func() {
			out, err := s.Client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("ahead"), Qualifier: aws.String("live"), Payload: []byte(`{"sleepMs": 3000}`)})
			if err != nil || out.FunctionError != nil {
				t.Errorf("%v %v", out, err)
				return
			}
			var answer struct{ StartedMS int64 }
			if err := json.Unmarshal(out.Payload, &answer); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if answer.StartedMS < begin {
				before++
			} else {
				after++
			}
		})
	}
	wg.Wait()
	if before != ahead || after != 1 {
		t.Errorf("%d invocations ran in processes that were there, %d in new ones; want %d and 1", before, after, ahead)
	}
}

// enqueue sends more events than there is concurrency for.
func enqueue(ctx context.Context, t *testing.T, s *harness.Server) (ids []string) {
	t.Helper()
	for range 2 * limit {
		out, err := s.Client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("limited"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{"sleepMs": 200}`)})
		if err != nil || out.StatusCode != 202 {
			t.Fatalf("%v %v", out, err)
		}
		id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
		ids = append(ids, id)
	}
	return ids
}

// executed waits until each event was executed.
func executed(ctx context.Context, t *testing.T, dir string, ids []string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		logs, missing := harness.Logs(t, dir), 0
		for _, id := range ids {
			if !strings.Contains(logs, "REPORT RequestId: "+id+"\t") {
				missing++
			}
		}
		if missing == 0 {
			return
		}
		if time.Since(begin) > time.Minute || ctx.Err() != nil {
			t.Fatalf("%d of %d accepted events were not executed", missing, len(ids))
		}
	}
}
