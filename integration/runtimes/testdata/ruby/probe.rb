# Reports what a Ruby function sees.
def writable(dir)
  File.write("#{dir}/probe-file", '')
  true
rescue SystemCallError
  false
end

def handler(event:, context:)
  puts 'probe: a line'
  puts "probe: two\nlines"
  {
    env: ENV.to_h,
    args: File.read('/proc/self/cmdline').split("\0"),
    cwd: Dir.pwd,
    status: File.read('/proc/self/status'),
    limits: File.read('/proc/self/limits'),
    meminfo: File.read('/proc/meminfo'),
    writable: ['/var/task', '/opt', '/var/runtime', '/tmp'].to_h { |d| [d, writable(d)] },
    event: event,
    remainingMs: context.get_remaining_time_in_millis,
    context: {
      name: context.function_name, version: context.function_version, arn: context.invoked_function_arn,
      memory: context.memory_limit_in_mb, requestId: context.aws_request_id, group: context.log_group_name, stream: context.log_stream_name,
      custom: context.client_context && context.client_context['custom']
    }
  }
end
