function __fish_aegis-agent_using_command
    set -l cmd (commandline -opc)
    set -e cmd[1]
    set -l target_cmd $argv

    set -l known_value_flags 'bucket' 'context' 'creds' 'exec' 'format' 'group' 'health-exec' 'health-failures' 'health-tcp' 'health-timeout' 'inbox-prefix' 'instance' 'interval' 'js-domain' 'marker-ttl' 'max-removals' 'meta' 'metrics-file' 'nats-url' 'nkey' 'only' 'output' 'password-file' 'replicas' 's' 'service' 'service-version' 'settle' 'stale-after' 'status' 'storage' 'timeout' 'tlsca' 'tlscert' 'tlskey' 'token-file' 'ttl' 'user' 

    set -l i 1
    set -l cleaned_cmd
    while test $i -le (count $cmd)
        set -l arg $cmd[$i]
        if string match -q -- "-*" $arg
            set -l pure_flag (string replace -r '^--?' '' -- $arg)
            if contains -- $pure_flag $known_value_flags
                set -l next_i (math $i + 1)
                if test $next_i -le (count $cmd)
                    if not string match -q -- "-*" $cmd[$next_i]
                        set i $next_i
                    end
                end
            end
        else
            set -a cleaned_cmd $arg
        end
        set i (math $i + 1)
    end

    set -l count_cleaned (count $cleaned_cmd)
    set -l count_target (count $target_cmd)
    
    if test $count_cleaned -ne $count_target
        return 1
    end
    
    for i in (seq $count_target)
        if test $cleaned_cmd[$i] != $target_cmd[$i]
            return 1
        end
    end
    
    return 0
end

complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -l version -s V -d 'print the version'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -a 'run' -d 'Registers an instance, keeps its entry alive, and takes it out on SIGTERM.'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -a 'init' -d 'Creates the bucket, or switches per-message TTL on in one that exists.'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -a 'check' -d 'Says whether per-message TTL really works here, and if not, why.'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -a 'cleanup' -d 'Removes stale entries, and never one that was refreshed meanwhile.'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -a 'list' -d 'Shows who is alive.'
complete -c aegis-agent -n '__fish_aegis-agent_using_command' -f -a 'watch' -d 'Tells who comes and goes, as it happens.'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l service -r -d 'name of the service (AEGIS_SERVICE; required)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l instance -r -d 'name of the instance (AEGIS_INSTANCE; default the host name up to its first dot)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l service-version -r -d 'version of the service (AEGIS_SERVICE_VERSION; default 0.0.0)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l ttl -r -d 'life of an entry, whole seconds (AEGIS_TTL; default 30s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l interval -r -d 'longest time between heartbeats (AEGIS_INTERVAL; default a third of the TTL)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l standby -d 'register as STANDBY instead of ACTIVE'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l group -r -d 'sticky active group (AEGIS_GROUP)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l meta -r -d 'metadata beside host and pid; repeatable'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l health-exec -r -d 'the service is well while this exits 0; no shell (AEGIS_HEALTH_EXEC)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l health-tcp -r -d 'the service is well while this accepts connections (AEGIS_HEALTH_TCP)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l health-timeout -r -d 'limit of a check (AEGIS_HEALTH_TIMEOUT; default 2s, at most the interval)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l health-failures -r -d 'failures in a row before UNHEALTHY (AEGIS_HEALTH_FAILURES; default 3)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l metrics-file -r -d 'keep this file of Prometheus text up to date (AEGIS_METRICS_FILE)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command run' -f -l version -s V -d 'print the version'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l replicas -r -d 'copies of a new bucket, 1 to 5 (default 1)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l marker-ttl -r -d 'life of the server\'s delete markers in a new bucket (default none)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l storage -r -d 'file or memory, for a new bucket (default file)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command init' -f -l version -s V -d 'print the version'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l probe -d 'store an entry of its own with a TTL of 1 s and wait for it to go'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l format -r -d 'text, json, nagios or prometheus (default text)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l json -d 'short for --format json'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l output -r -d 'write to this file, whole or not at all (with --format prometheus)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command check' -f -l version -s V -d 'print the version'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l dry-run -d 'say what would be removed, remove nothing'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l stale-after -r -d 'age from which a heartbeat is too old (default 35s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l only -r -d 'only entries that are stale for this reason; repeatable'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l service -r -d 'only this service'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l max-removals -r -d 'remove nothing and exit 75 if more would go'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l unreadable -d 'remove instance entries that cannot be read, too'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l json -d 'answer in JSON'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command cleanup' -f -l version -s V -d 'print the version'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l all -d 'stale ones, too, with the reasons'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l service -r -d 'only this service'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l status -r -d 'only those of this status'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l meta -r -d 'only those with this in their metadata; repeatable'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l wide -d 'host, pid, group, revision and metadata, too'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l names -d 'only names, one service/instance a line'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l stale-after -r -d 'age from which a heartbeat is too old (default 35s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l json -d 'answer in JSON'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command list' -l version -s V -d 'print the version'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l help -d 'display usage information'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l json -d 'one event a line, in JSON'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l exec -r -d 'run this after changes; no shell (AEGIS_EXEC)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l settle -r -d 'changes within this time go together (AEGIS_SETTLE; default 200ms)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l stale-after -r -d 'age from which a heartbeat is too old (default 35s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l nats-url -s s -r -d 'servers, tls:// for TLS (NATS_URL; default nats://127.0.0.1:4222)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l creds -r -d 'user JWT and seed (NATS_CREDS)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l nkey -r -d 'user nkey seed (NATS_NKEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l user -r -d 'user name (NATS_USER)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l password-file -r -d 'the user\'s password (NATS_PASSWORD holds the password itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l token-file -r -d 'a token (NATS_TOKEN holds the token itself)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l tlsca -r -d 'roots to trust (NATS_CA; default the system\'s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l tlscert -r -d 'our own certificate (NATS_CERT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l tlskey -r -d 'its key (NATS_KEY)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l context -r -d 'a context of the nats CLI (NATS_CONTEXT)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l inbox-prefix -r -d 'where replies arrive (AEGIS_INBOX_PREFIX; default _INBOX)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l timeout -r -d 'limit of each exchange with NATS (NATS_TIMEOUT; default 5s)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l bucket -r -d 'the bucket (AEGIS_BUCKET; default service_registry)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l js-domain -r -d 'where the bucket\'s JetStream is: its domain (AEGIS_JS_DOMAIN)'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l verbose -s v -d 'log more'
complete -c aegis-agent -n '__fish_aegis-agent_using_command watch' -l version -s V -d 'print the version'
