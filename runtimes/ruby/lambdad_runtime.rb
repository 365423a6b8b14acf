# frozen_string_literal: true

# The Ruby runtime client of lambdad.
#
# It asks the Runtime API for events, calls the function's handler and posts what
# comes back, as AWS's Ruby runtimes do (runtimes.md section 4).

require 'json'
require 'logger'
require 'socket'

module LambdadRuntime
  VERSION = '1.0.0'
  API = '/2018-06-01/runtime/'
  HERE = File.dirname(File.expand_path(__FILE__))
  # An X-Ray cause above this is left out: it travels in a header.
  MAX_CAUSE = 64 << 10
  # Only these names leave in the header that says the error's type.
  NAMED = %w[ArgumentError NoMethodError Exception StandardError NameError LoadError SystemExit SystemStackError].freeze

  # The request whose lines are logged.
  @request_id = nil
  @tenant_id = nil
  class << self
    attr_accessor :request_id, :tenant_id
  end

  # The Runtime API does not answer as it should.
  class APIError < StandardError; end

  # A connection to the Runtime API, kept alive, without timeouts: the process is
  # frozen while it waits for an event.
  class Client
    def initialize(address)
      @address = address
      host, _, port = address.rpartition(':')
      @host = host.empty? ? port : host.delete('[]')
      @port = host.empty? ? 80 : port.to_i
      @common = " HTTP/1.1\r\nHost: #{address}\r\nUser-Agent: aws-lambda-ruby/#{RUBY_VERSION}-#{VERSION}\r\n"
      @next = "GET #{API}invocation/next#{@common}\r\n"
    end

    def next_invocation
      status, headers, body = request(@next)
      raise APIError, "GET invocation/next: the Runtime API answered #{status}: #{body}" unless status == 200

      [headers, body]
    end

    # An answer that is too large has been replaced by the platform: go on.
    def post_response(id, body, type)
      post("invocation/#{id}/response", body, "Content-Type: #{type}\r\n", [202, 413])
    end

    def post_error(id, failure)
      post("invocation/#{id}/error", failure.body, failure.headers, [202, 413])
    end

    def post_init_error(failure)
      post('init/error', failure.body, failure.headers, [202, 403])
    end

    private

    def post(path, body, headers, accepted)
      head = "POST #{API}#{path}#{@common}#{headers}Content-Length: #{body.bytesize}\r\n\r\n"
      status, _, answer = request(head.b << body.b)
      raise APIError, "POST #{path}: the Runtime API answered #{status}: #{answer}" unless accepted.include?(status)
    end

    def request(data)
      reused = !@socket.nil?
      begin
        @socket ||= open
        @socket.write(data)
        line = @socket.gets("\r\n") or raise EOFError, 'the Runtime API closed the connection'
      rescue SystemCallError, IOError
        close
        # The other side may close a connection that has been idle; then once more.
        raise unless reused

        reused = false
        retry
      end
      answer(line)
    rescue SystemCallError, IOError => e
      close
      raise APIError, e.message
    end

    def open
      socket = TCPSocket.new(@host, @port)
      socket.setsockopt(Socket::IPPROTO_TCP, Socket::TCP_NODELAY, 1)
      socket.binmode
      socket
    end

    def close
      @socket&.close
    rescue IOError
      nil
    ensure
      @socket = nil
    end

    def answer(line)
      status = headers = nil
      loop do
        m = %r{\AHTTP/1\.[01] (\d{3})}.match(line) or raise EOFError, "the Runtime API answered with something that is not HTTP/1.1: #{line[0, 80]}"
        status = m[1].to_i
        headers = read_headers
        break if status >= 200

        line = @socket.gets("\r\n").to_s
      end
      body = read_body(status, headers)
      close if headers['connection']&.downcase == 'close'
      [status, headers, body]
    end

    def read_headers
      headers = {}
      while (line = @socket.gets("\r\n")) && line != "\r\n"
        name, _, value = line.partition(':')
        headers[name.downcase] = value.strip.force_encoding(Encoding::UTF_8)
      end
      headers
    end

    def read_body(status, headers)
      return '' if status == 204
      return read_chunks if headers['transfer-encoding']&.downcase&.include?('chunked')

      exactly(headers.fetch('content-length') { raise EOFError, 'the Runtime API answered without a length' }.to_i)
    end

    def read_chunks
      body = +''.b
      while (size = @socket.gets("\r\n").to_s.to_i(16)).positive?
        body << exactly(size)
        @socket.gets("\r\n")
      end
      nil while (line = @socket.gets("\r\n")) && line != "\r\n"
      body
    end

    def exactly(size)
      return +'' if size.zero?

      data = @socket.read(size)
      raise EOFError, 'the Runtime API closed the connection in the middle of an answer' if data.nil? || data.bytesize < size

      data
    end
  end

  # What is posted and logged of an exception.
  class Failure
    attr_reader :error

    def initialize(error, kind)
      @error = error
      @type = "#{kind}<#{error.class}>"
      @header = NAMED.include?(error.class.to_s) ? @type : 'Function<UserException>'
    end

    def members
      @members ||= { 'errorMessage' => text, 'errorType' => @type, 'stackTrace' => frames }
    end

    def body
      JSON.generate(members)
    rescue JSON::GeneratorError
      JSON.generate(members.merge('errorMessage' => text.dup.force_encoding(Encoding::BINARY).encode(Encoding::UTF_8, invalid: :replace, undef: :replace)))
    end

    def headers
      head = "Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: #{@header}\r\n"
      text = cause
      head += "Lambda-Runtime-Function-XRay-Error-Cause: #{text}\r\n" if text.bytesize <= MAX_CAUSE
      head
    end

    private

    def text
      @error.message.to_s
    end

    def frames
      (@error.backtrace || []).take_while { |f| !f.start_with?(HERE) }.first(100)
    end

    def cause
      stack = frames.first(15).map do |f|
        m = /\A(.*?):(\d+)(?::in ['`](.*)')?\z/.match(f)
        m ? { path: m[1], line: m[2].to_i, label: m[3].to_s } : { path: f, line: 0, label: '' }
      end
      JSON.generate({ working_directory: Dir.pwd, exceptions: [{ type: @type, message: text, stack: stack }], paths: stack.map { |s| s[:path] }.uniq }, ascii_only: true)
    rescue JSON::GeneratorError
      ''
    end
  end

  # The handler's context.
  class Context
    attr_reader :aws_request_id, :invoked_function_arn, :log_group_name, :log_stream_name, :function_name,
                :memory_limit_in_mb, :function_version, :identity, :client_context, :deadline_ms, :tenant_id

    def initialize(headers)
      @aws_request_id = headers['lambda-runtime-aws-request-id']
      @invoked_function_arn = headers['lambda-runtime-invoked-function-arn']
      @deadline_ms = headers['lambda-runtime-deadline-ms'].to_i
      @identity = parse(headers['lambda-runtime-cognito-identity'])
      @client_context = parse(headers['lambda-runtime-client-context'])
      @tenant_id = headers['lambda-runtime-aws-tenant-id']
      @log_group_name = ENV.fetch('AWS_LAMBDA_LOG_GROUP_NAME', nil)
      @log_stream_name = ENV.fetch('AWS_LAMBDA_LOG_STREAM_NAME', nil)
      @function_name = ENV.fetch('AWS_LAMBDA_FUNCTION_NAME', nil)
      @memory_limit_in_mb = ENV.fetch('AWS_LAMBDA_FUNCTION_MEMORY_SIZE', nil)
      @function_version = ENV.fetch('AWS_LAMBDA_FUNCTION_VERSION', nil)
    end

    def get_remaining_time_in_millis # rubocop:disable Naming/AccessorMethodName
      [@deadline_ms - (Time.now.to_f * 1000).to_i, 0].max
    end

    private

    def parse(text)
      text.nil? || text.empty? ? nil : JSON.parse(text)
    end
  end

  JSON_LOGS = ENV['AWS_LAMBDA_LOG_FORMAT'].to_s.casecmp?('JSON')

  # What Logger prints unless the user says otherwise: the request id is in it.
  class Formatter < ::Logger::Formatter
    def call(severity, time, progname, msg)
      return json(severity, time, progname, msg) if JSON_LOGS

      format("%s, [%s #%d] %5s %s -- %s: %s\n", severity[0], time.strftime('%Y-%m-%dT%H:%M:%S.%6N'), Process.pid, severity, LambdadRuntime.request_id, progname, msg2str(msg))
    end

    private

    def json(severity, time, progname, msg)
      record = { timestamp: time.getutc.strftime('%Y-%m-%dT%H:%M:%S.%6NZ'), level: severity, message: msg.is_a?(::Exception) ? msg.message : msg, requestId: LambdadRuntime.request_id }
      record[:tenantId] = LambdadRuntime.tenant_id if LambdadRuntime.tenant_id
      record[:logger] = progname if progname
      if msg.is_a?(::Exception)
        record[:errorType] = msg.class.to_s
        record[:errorMessage] = msg.message
        record[:stackTrace] = msg.backtrace || []
        record[:location] = msg.backtrace.first if msg.backtrace&.first
      end
      "#{JSON.generate(record)}\n"
    rescue JSON::GeneratorError
      "#{JSON.generate(record.merge(message: msg.inspect.scrub))}\n"
    end
  end

  LEVELS = { 'TRACE' => :DEBUG, 'DEBUG' => :DEBUG, 'INFO' => :INFO, 'WARN' => :WARN, 'ERROR' => :ERROR, 'FATAL' => :FATAL }.freeze

  # Gives every Logger of standard output the formatter above.
  module Loggers
    def initialize(logdev = nil, *args, **options)
      logdev = $stdout if logdev.nil?
      if [$stdout, $stderr, STDOUT, STDERR].include?(logdev)
        logdev = LambdadRuntime.sink if logdev.equal?(STDOUT)
        options[:formatter] ||= Formatter.new
        level = LEVELS[ENV['AWS_LAMBDA_LOG_LEVEL'].to_s.upcase]
        options[:level] = ::Logger.const_get(level) if level && !options.key?(:level)
      end
      super(logdev, *args, **options)
    end
  end
  ::Logger.prepend(Loggers)

  # Where the function's code is.
  class Handler
    def initialize(name)
      parts = name.split('.', -1)
      unless [2, 3].include?(parts.size) && parts.none?(&:empty?)
        raise ArgumentError, "Invalid handler #{name.split('.')}, must be of form FILENAME.METHOD or FILENAME.CLASS.METHOD where FILENAME corresponds with an existing Ruby source file FILENAME.rb, CLASS is an optional module/class namespace and METHOD is a callable method. If using CLASS, METHOD must be a class-level method."
      end
      @file = parts.first
      @method = parts.last
      @class = parts.size == 3 ? parts[1] : nil
    end

    def load
      require @file
    end

    def call(event, context)
      (@class ? Kernel.const_get(@class) : Kernel).send(@method, event: event, context: context)
    end
  end

  # Log records on a descriptor that the platform gives for them, each with its length
  # and time before it (traps.md section 5): those of several lines stay whole.
  class Frames
    TEXT = 0xa55a0003

    def initialize(file) = @file = file

    def write(text)
      text = text.to_s.b
      now = Process.clock_gettime(Process::CLOCK_REALTIME, :microsecond)
      @file.write([TEXT, text.bytesize, now].pack('NNQ>') << text)
      text.bytesize
    end

    def close; end
  end

  class << self
    # Where records go: to Frames or the standard output.
    def sink = @sink || $stdout

    # Uses the descriptor that the platform names, for puts and loggers; children do
    # not get it.
    def frame_records
      fd = ENV.delete('_LAMBDA_TELEMETRY_LOG_FD')
      return unless fd

      file = IO.for_fd(Integer(fd), 'wb', autoclose: false)
      file.close_on_exec = true
      file.sync = true
      @sink = sink = Frames.new(file)
      puts = lambda do |*args|
        next $stdout.puts(*args) unless $stdout.equal?(STDOUT) # redirected by the function

        lines = args.flatten.map { |a| a.to_s.encode('UTF-8', invalid: :replace, undef: :replace) }
        sink.write(lines.empty? ? "\n" : lines.join("\n"))
        nil
      end
      Kernel.define_method(:puts, &puts)
      Kernel.send(:private, :puts)
      Kernel.define_singleton_method(:puts, &puts) # a handler's self is Kernel
    rescue ArgumentError, SystemCallError
      nil # no such descriptor: records are lines
    end

    def log_failure(message, failure)
      if JSON_LOGS
        record = { timestamp: Time.now.utc.strftime('%Y-%m-%dT%H:%M:%S.%6NZ'), level: 'ERROR', message: message, requestId: request_id }
        sink.write("#{JSON.generate(record.merge(failure.members))}\n")
      else
        sink.write("#{message}\n#{JSON.pretty_generate(failure.members)}\n")
      end
    rescue JSON::GeneratorError
      sink.write("#{message}\n")
    end

    def main
      $stdout.sync = true
      $stderr.sync = true
      frame_records
      client = Client.new(ENV.fetch('AWS_LAMBDA_RUNTIME_API'))
      name = ARGV[0] || ENV['_HANDLER'].to_s
      handler = initialise(client, name)
      loop { invoke(client, handler) }
    rescue APIError => e
      warn "the Ruby runtime client cannot go on: #{e.message}"
      exit!(254)
    end

    def initialise(client, name)
      $LOAD_PATH.unshift(Dir.pwd) unless $LOAD_PATH.first == Dir.pwd
      handler = Handler.new(name)
      handler.load
      handler
    rescue Exception => e # rubocop:disable Lint/RescueException
      raise if e.is_a?(APIError) || e.is_a?(SignalException)

      compiled(e)
      failure = Failure.new(e, 'Init')
      log_failure("Init error when loading handler #{name}", failure)
      client.post_init_error(failure)
      exit!(252)
    end

    # A compiled gem was made for another Ruby: both versions and the way out.
    def compiled(error)
      return unless error.is_a?(LoadError) && error.message.match?(/incompatible library version|undefined symbol: rb_|wrong ELF class|libruby/)

      asked = ENV['AWS_EXECUTION_ENV'].to_s.delete_prefix('AWS_Lambda_')
      text = "#{error.message}\nThe function's runtime is #{asked} and this host ran it on Ruby #{RUBY_VERSION}. " \
             "A gem with compiled parts must fit it: install that Ruby on the host, or run: lambdad runtime add #{asked} --image IMAGE"
      error.define_singleton_method(:message) { text }
    end

    def invoke(client, handler)
      headers, body = client.next_invocation
      id = headers['lambda-runtime-aws-request-id']
      self.request_id = id
      self.tenant_id = headers['lambda-runtime-aws-tenant-id']
      trace = headers['lambda-runtime-trace-id']
      ENV['_X_AMZN_TRACE_ID'] = trace if trace
      event, context = prepare(client, headers, body)
      begin
        result = handler.call(event, context)
        if result.respond_to?(:read) && (result.is_a?(IO) || result.class.name == 'StringIO')
          answer = result.read
          type = 'application/unknown'
        else
          answer = result.to_json
          # What JSON cannot say of text that is not UTF-8 is an error everywhere.
          raise JSON::GeneratorError, 'source sequence is illegal/malformed utf-8' unless answer.valid_encoding?

          type = 'application/json'
        end
      rescue APIError
        raise
      rescue NoMethodError, NameError => e
        critical(client, id, e)
      rescue StandardError => e
        failure = Failure.new(e, 'Function')
        log_failure('Error raised from handler method', failure)
        client.post_error(id, failure)
        return
      rescue Exception => e # rubocop:disable Lint/RescueException
        raise if e.is_a?(SignalException)

        critical(client, id, e)
      end
      client.post_response(id, answer, type)
    end

    # The event and the context; what they cannot be made of ends the process.
    def prepare(client, headers, body)
      event = headers['content-type'] == 'application/json' ? JSON.parse(body.force_encoding(Encoding::UTF_8)) : body.force_encoding(Encoding::UTF_8)
      [event, Context.new(headers)]
    rescue JSON::ParserError => e
      failure = Failure.new(e, 'Init')
      log_failure('Init error when loading handler', failure)
      client.post_init_error(failure)
      exit!(252)
    end

    # Posts what a process does not survive.
    def critical(client, id, error)
      failure = Failure.new(error, 'Function')
      log_failure('Critical exception from handler', failure)
      client.post_error(id, failure)
      exit!(255)
    end
  end
end

LambdadRuntime.main
