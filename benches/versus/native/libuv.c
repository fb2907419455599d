/*
 * The servers on libuv: callbacks, one buffer for each connection, an answer tried at once
 * (uv_try_write) and queued (uv_write) for as much as the socket had no room for. Reads are stopped
 * while something is queued, for it lies in the connection's buffer.
 *
 * src/servers/libuv.rs declares the enumeration, the plan and the two functions once more.
 */

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum work { DO_ECHO, DO_SMALL_WRITES, DO_SOURCE, DO_SINK, DO_RELAY };

struct plan {
    int work;
    size_t buffer_bytes;   /* of each connection */
    size_t request_bytes;  /* of SMALL_WRITES and RELAY */
    unsigned small_writes; /* that answer a request of SMALL_WRITES */
};

/* Connections with a request, on their way to another thread. */
struct mailbox {
    uv_mutex_t lock;
    uv_async_t wake;
    struct connection *first, *last;
};

struct connection {
    uv_tcp_t stream;
    uv_write_t queued;
    int reading;
    unsigned answers_left;
    size_t filled;           /* of a request that has come in part */
    int asked;               /* the other thread has the connection */
    int closed;              /* the handle is gone */
    char *question;          /* what it is asked, beside the buffer */
    struct connection *next; /* in a mailbox */
    char buffer[];
};

static struct plan plan;
static struct mailbox questions, answers;

static void answer(struct connection *connection, const char *bytes, size_t length);
static void go_on(struct connection *connection);

/* --- the life of a connection --- */

static void free_unless_used(struct connection *connection)
{
    if (connection->closed && !connection->asked)
        free(connection);
}

static void after_close(uv_handle_t *handle)
{
    struct connection *connection = handle->data;
    connection->closed = 1;
    free_unless_used(connection);
}

static void end(struct connection *connection)
{
    uv_handle_t *handle = (uv_handle_t *)&connection->stream;
    if (!uv_is_closing(handle))
        uv_close(handle, after_close);
}

/* --- mail between two threads --- */

static int open_mailbox(struct mailbox *mailbox, uv_loop_t *loop, uv_async_cb deliver)
{
    int error = uv_mutex_init(&mailbox->lock);
    return error ? error : uv_async_init(loop, &mailbox->wake, deliver);
}

static void post(struct mailbox *mailbox, struct connection *connection)
{
    connection->next = NULL;
    uv_mutex_lock(&mailbox->lock);
    if (mailbox->first)
        mailbox->last->next = connection;
    else
        mailbox->first = connection;
    mailbox->last = connection;
    uv_mutex_unlock(&mailbox->lock);
    uv_async_send(&mailbox->wake);
}

static struct connection *take_all(struct mailbox *mailbox)
{
    struct connection *first;
    uv_mutex_lock(&mailbox->lock);
    first = mailbox->first;
    mailbox->first = NULL;
    uv_mutex_unlock(&mailbox->lock);
    return first;
}

/* On the other thread: the answer to a request is the request. */
static void on_questions(uv_async_t *wake)
{
    struct connection *connection = take_all(&questions), *next;
    (void)wake;
    for (; connection; connection = next) {
        next = connection->next;
        post(&answers, connection);
    }
}

static void on_answers(uv_async_t *wake)
{
    struct connection *connection = take_all(&answers), *next;
    (void)wake;
    for (; connection; connection = next) {
        next = connection->next;
        connection->asked = 0;
        if (uv_is_closing((uv_handle_t *)&connection->stream)) {
            free_unless_used(connection);
        } else {
            answer(connection, connection->question, plan.request_bytes);
        }
    }
}

/* Reading goes on meanwhile, into the buffer. */
static void ask(struct connection *connection)
{
    connection->filled = 0;
    memcpy(connection->question, connection->buffer, plan.request_bytes);
    connection->asked = 1;
    post(&questions, connection);
}

static void run_other_loop(void *loop)
{
    uv_run(loop, UV_RUN_DEFAULT);
}

/* --- sending --- */

static void stop_reading(struct connection *connection)
{
    if (connection->reading)
        uv_read_stop((uv_stream_t *)&connection->stream);
    connection->reading = 0;
}

static void after_write(uv_write_t *queued, int status)
{
    struct connection *connection = queued->data;
    if (status < 0)
        end(connection);
    else if (--connection->answers_left > 0)
        answer(connection, connection->buffer, plan.request_bytes);
    else
        go_on(connection);
}

static void queue(struct connection *connection, const char *bytes, size_t length)
{
    uv_buf_t rest = uv_buf_init((char *)bytes, (unsigned)length);
    uv_stream_t *stream = (uv_stream_t *)&connection->stream;
    stop_reading(connection);
    if (uv_write(&connection->queued, stream, &rest, 1, after_write) < 0)
        end(connection);
}

/* Sends the bytes as often as there are answers left, and goes on by callbacks where it must. */
static void answer(struct connection *connection, const char *bytes, size_t length)
{
    uv_buf_t all = uv_buf_init((char *)bytes, (unsigned)length);
    do {
        int sent = uv_try_write((uv_stream_t *)&connection->stream, &all, 1);
        if (sent < 0 && sent != UV_EAGAIN) {
            end(connection);
            return;
        }
        sent = sent < 0 ? 0 : sent;
        if ((size_t)sent < length) {
            queue(connection, bytes + sent, length - (size_t)sent);
            return;
        }
    } while (--connection->answers_left > 0);
    go_on(connection);
}

/* --- receiving --- */

static void on_room(uv_handle_t *handle, size_t suggested, uv_buf_t *room)
{
    struct connection *connection = handle->data;
    (void)suggested;
    room->base = connection->buffer + connection->filled;
    room->len = plan.buffer_bytes - connection->filled;
}

static void on_read(uv_stream_t *stream, ssize_t received, const uv_buf_t *room)
{
    struct connection *connection = stream->data;
    (void)room;
    if (received < 0) {
        end(connection);
        return;
    }
    if (received == 0 || plan.work == DO_SINK)
        return;
    if (plan.work == DO_ECHO) {
        connection->answers_left = 1;
        answer(connection, connection->buffer, (size_t)received);
        return;
    }
    connection->filled += (size_t)received;
    if (connection->filled < plan.request_bytes)
        return;
    if (plan.work == DO_SMALL_WRITES) {
        connection->filled = 0;
        connection->answers_left = plan.small_writes;
        answer(connection, connection->buffer, plan.request_bytes);
    } else if (connection->answers_left > 0) {
        /* The answer before is still on its way: go_on asks. */
        stop_reading(connection);
    } else {
        connection->answers_left = 1;
        ask(connection);
    }
}

/* What has been received is answered. */
static void go_on(struct connection *connection)
{
    if (plan.work == DO_SOURCE) {
        connection->answers_left = 1;
        queue(connection, connection->buffer, plan.buffer_bytes);
        return;
    }
    if (plan.work == DO_RELAY && connection->filled == plan.request_bytes) {
        connection->answers_left = 1;
        ask(connection);
    }
    if (!connection->reading) {
        connection->reading = 1;
        if (uv_read_start((uv_stream_t *)&connection->stream, on_room, on_read) < 0)
            end(connection);
    }
}

/* --- the listener --- */

static void on_connection(uv_stream_t *listener, int status)
{
    struct connection *connection;
    if (status < 0)
        return;
    connection = calloc(1, sizeof *connection + plan.buffer_bytes + plan.request_bytes);
    if (!connection)
        return;
    if (uv_tcp_init(listener->loop, &connection->stream) < 0) {
        free(connection);
        return;
    }
    connection->stream.data = connection;
    connection->queued.data = connection;
    connection->question = connection->buffer + plan.buffer_bytes;
    if (uv_accept(listener, (uv_stream_t *)&connection->stream) < 0 ||
        uv_tcp_nodelay(&connection->stream, 1) < 0)
        end(connection);
    else
        go_on(connection);
}

static int open_relay(uv_loop_t *loop)
{
    static uv_loop_t other;
    static uv_thread_t thread;
    int error = uv_loop_init(&other);
    if (!error)
        error = open_mailbox(&questions, &other, on_questions);
    if (!error)
        error = open_mailbox(&answers, loop, on_answers);
    return error ? error : uv_thread_create(&thread, run_other_loop, &other);
}

/* Serves on a free port of 127.0.0.1, which it tells once. Returns a libuv error, or never. */
int versus_libuv_serve(const struct plan *wanted, void (*announce)(int port))
{
    static uv_loop_t loop;
    static uv_tcp_t listener;
    struct sockaddr_in address;
    int length = sizeof address, error;

    plan = *wanted;
    if ((error = uv_loop_init(&loop)) < 0 || (error = uv_tcp_init(&loop, &listener)) < 0 ||
        (error = uv_ip4_addr("127.0.0.1", 0, &address)) < 0 ||
        (error = uv_tcp_bind(&listener, (struct sockaddr *)&address, 0)) < 0 ||
        (error = uv_listen((uv_stream_t *)&listener, 1024, on_connection)) < 0 ||
        (error = uv_tcp_getsockname(&listener, (struct sockaddr *)&address, &length)) < 0 ||
        (plan.work == DO_RELAY && (error = open_relay(&loop)) < 0))
        return error;
    announce(ntohs(address.sin_port));
    return uv_run(&loop, UV_RUN_DEFAULT);
}

/* The text of an error. */
const char *versus_libuv_error(int error)
{
    return uv_strerror(error);
}
